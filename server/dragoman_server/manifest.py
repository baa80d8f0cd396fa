"""What a bundle says of itself: `bundle.json`, defined once for its writer and its reader.

The dataclasses below are the schema: their fields are the keys, and parsing refuses unknown, missing or
mistyped ones. One key more, `sha256`, is the hash of all others: a damaged file is noticed. It is no
signature: whoever changes the file on purpose can change it as well.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dragoman_server.errors import BundleError
from dragoman_server.languages import LanguageTokens
from dragoman_server.special_ids import SpecialIds
from dragoman_server.state_tensor import StateTensor
from dragoman_server.strict_json import RecordError, parse_json

__all__ = [
    "MANIFEST_FILE",
    "SCHEMA",
    "VERSION_PATTERN",
    "Canary",
    "Dimensions",
    "FileRecord",
    "Gate",
    "Graphs",
    "Limits",
    "Manifest",
    "Outcome",
    "Score",
    "SpecialIds",
    "Tokenizers",
    "require_file_name",
    "sealed",
]

SCHEMA = 6
"""The schema number that this code writes and reads."""
MANIFEST_FILE = "bundle.json"
VERSION_PATTERN = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
"""Of a bundle's version, which is also the name of its directory."""

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MAX_TOKENS = 2**16
_HASH_KEY = "sha256"
_MAX_LENGTH_PENALTY = 10.0


def require_file_name(name: str) -> None:
    """Refuse a name that could leave its directory or hide in it.

    Raises:
        BundleError: `name` is not made of letters, digits, `_`, `-` and `.`, or begins with `-` or `.`.
    """
    if not _FILE_NAME.fullmatch(name):
        raise BundleError(f"{name!r} is no file name of a bundle: letters, digits, '_', '-' and '.' alone")


@dataclass(frozen=True, slots=True)
class Dimensions:
    """Sizes of the network."""

    d_model: int
    num_heads: int
    """Of the decoder, as the two below."""
    head_dim: int
    d_ff: int
    encoder_layers: int
    decoder_layers: int
    source_vocabulary_size: int
    target_vocabulary_size: int
    encoder_num_heads: int
    encoder_d_ff: int

    def __post_init__(self) -> None:
        _require_positive("dimensions", self)


@dataclass(frozen=True, slots=True)
class Limits:
    """The longest sequences the graphs take."""

    max_source_tokens: int
    """The end-of-sentence token included."""
    max_target_tokens: int
    """Tokens fed to the decoder, the start token included."""

    def __post_init__(self) -> None:
        _require_positive("limits", self)
        if max(self.max_source_tokens, self.max_target_tokens) > _MAX_TOKENS:
            raise BundleError(f"limits must be at most {_MAX_TOKENS} tokens")


@dataclass(frozen=True, slots=True)
class Tokenizers:
    """File names of the SentencePiece models; one file where both sides share it."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file must be to be loaded."""

    bytes: int
    sha256: str
    """In lower-case hexadecimal."""

    def __post_init__(self) -> None:
        if self.bytes < 0:
            raise BundleError(f"files: a size must not be negative, as {self.bytes} is")
        if not _SHA256.fullmatch(self.sha256):
            raise BundleError(f"files: {self.sha256!r} is no SHA-256 in lower-case hexadecimal")


@dataclass(frozen=True, slots=True)
class Graphs:
    """The two ONNX graphs of one precision."""

    encoder: str
    """File name."""
    decode_step: str
    """File name."""
    state: tuple[StateTensor, ...]
    """What the decoder keeps between steps."""
    activation_scales: Literal["none", "row-wise", "static"] = "none"
    """How the decode step's activations become integers: not at all, with a scale for each row, or with
    fixed ones."""

    def __post_init__(self) -> None:
        names = [tensor.name for tensor in self.state]
        if len(set(names)) != len(names):
            raise BundleError("state: tensor names must be distinct")


@dataclass(frozen=True, slots=True)
class Score:
    """One quality measurement."""

    metric: str
    value: float
    test_set: str
    signature: str
    """sacreBLEU's, which says how it was computed."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A text and its translation when the bundle was made, for a server to compare its own with."""

    text: str
    """In the source language."""
    translation: str
    score: float
    """Of the translation: log-probability by length penalty, natural logarithm, summed over segments."""
    tolerance: float
    """Largest difference of the score at which another translation is as good: other CPUs round otherwise."""
    beam_size: int
    length_penalty: float

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise BundleError(f"canaries: beam_size must be at least 1, not {self.beam_size}")
        if not (0.0 <= self.length_penalty <= _MAX_LENGTH_PENALTY and self.tolerance >= 0.0):
            raise BundleError("canaries: length_penalty or tolerance is out of its range")


Outcome = Literal["same", "other", "failed"]
"""What became of a text: torch's translation (or one that scores as well), another, or none."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What the exporter checked of one precision before it let the bundle be."""

    passed: bool
    sentences: int
    steps: int
    """Decoder steps compared under teacher forcing."""
    max_log_prob_difference: float
    """Largest absolute difference to torch over all steps and the whole vocabulary, natural logarithm."""
    mean_log_prob_loss: float
    """How much less probable than to torch torch's own tokens are, mean over all steps, natural logarithm."""
    tolerance: float
    """Bound on the largest difference, or, where arithmetic is reduced, on the mean loss."""
    greedy_agreement: float
    """Share of sentences whose greedy translations are equal, token for token."""
    beam_agreement: float
    """Share of sentences whose translations by the engine, with a beam of 4, are torch's or score as well."""
    same_alone: float
    """Share of sentences that the engine translates alike alone and beside others."""
    behaviour: Mapping[str, Outcome]
    """What became of whole texts, by what is odd about them: in capitals, empty, very long, ..."""
    scores: tuple[Score, ...] = ()
    """Quality of this precision's translations, where the export was given references."""
    canaries: tuple[Canary, ...] = ()
    """A few translations by this precision's graphs, which a server must find again before it serves them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of `bundle.json`.

    Raises:
        BundleError: fields contradict each other.
    """

    schema: int = SCHEMA
    name: str
    version: str
    """A positive integer in decimal: the highest is the newest."""
    architecture: Literal["transformer"]
    source_languages: tuple[str, ...]
    target_languages: tuple[str, ...]
    dimensions: Dimensions
    special_ids: SpecialIds
    language_tokens: LanguageTokens
    limits: Limits
    tokenizers: Tokenizers
    precisions: Mapping[str, Graphs]
    gates: Mapping[str, Gate]
    """By precision; one without a passed gate is not served."""
    scores: tuple[Score, ...] = ()
    """Of the checkpoint."""
    provenance: str
    """Where the training data comes from."""
    licence: str
    """Of the training data."""
    created_by: Mapping[str, str]
    """Versions of the software that exported the bundle."""
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    """Every file but `bundle.json`."""

    def __post_init__(self) -> None:
        require_file_name(self.name)
        if not VERSION_PATTERN.fullmatch(self.version):
            raise BundleError(f"version must be a positive integer, not {self.version!r}")
        if not (self.source_languages and self.target_languages):
            raise BundleError("source_languages and target_languages must not be empty")
        self._require_special_ids()
        self._require_files()
        if not self.precisions or not set(self.gates) <= set(self.precisions):
            raise BundleError("precisions must not be empty, and gates must name no others")

    def _require_special_ids(self) -> None:
        special = self.special_ids
        ids = (special.pad, special.unk, special.bos, special.eos, *special.never)
        vocabulary = min(self.dimensions.source_vocabulary_size, self.dimensions.target_vocabulary_size)
        if not all(0 <= i < vocabulary for i in ids):
            raise BundleError(f"special_ids must be below the vocabulary size {vocabulary}")
        if len({special.pad, special.unk, special.eos}) < 3 or special.bos == special.unk:
            raise BundleError("special_ids: pad, unk and eos must be distinct, and bos must not be unk")
        if special.eos in special.never:
            raise BundleError("special_ids: never must not contain eos")
        self._require_language_tokens(vocabulary)

    def _require_language_tokens(self, vocabulary: int) -> None:
        tokens = self.language_tokens
        for name, known in (
            ("source", self.source_languages),
            ("target", self.target_languages),
            ("forced", self.target_languages),
        ):
            ids = getattr(tokens, name)
            if ids and set(ids) != set(known):
                raise BundleError(f"language_tokens.{name} must name the languages {', '.join(known)}")
            if not all(0 <= i < vocabulary for i in ids.values()):
                raise BundleError(f"language_tokens.{name} must be below the vocabulary size {vocabulary}")

    def _require_files(self) -> None:
        named = {self.tokenizers.source, self.tokenizers.target}
        for graphs in self.precisions.values():
            named |= {graphs.encoder, graphs.decode_step}
        for name in sorted(named | set(self.files)):
            require_file_name(name)
            if name == MANIFEST_FILE or name not in self.files:
                raise BundleError(f"files has no entry for {name!r}")

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """Parse `bundle.json`, strictly.

        Raises:
            BundleError: the text is no JSON, the schema number is unknown, a field is unknown, missing, of
                the wrong type or contradicts another (the message names the field), or the text is not the
                one that was written.
        """
        try:
            document = json.loads(text, object_pairs_hook=_distinct, parse_constant=_refuse_constant)
        except RecursionError as error:
            raise BundleError(f"{MANIFEST_FILE} is nested too deeply") from error
        except ValueError as error:
            raise BundleError(f"{MANIFEST_FILE} is no valid JSON: {error}") from error
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            found = document.get("schema") if isinstance(document, dict) else None
            raise BundleError(
                f"{MANIFEST_FILE}: schema {found!r} is unknown, this version reads {SCHEMA}: "
                "export the checkpoint again or upgrade dragoman"
            )
        document.pop(_HASH_KEY, None)
        try:
            manifest = parse_json(cls, document)
        except (RecordError, BundleError) as error:
            raise BundleError(f"{MANIFEST_FILE}: {error}") from error
        if manifest.to_json() != text:
            raise BundleError(f"{MANIFEST_FILE} has been altered since it was written; copy it again")
        return manifest

    def to_json(self) -> bytes:
        """The text of `bundle.json`, the same for equal manifests."""
        return sealed(dataclasses.asdict(self))


def sealed(document: Mapping[str, Any]) -> bytes:
    """The text of a manifest, given without its hash."""
    return _text({**document, _HASH_KEY: hashlib.sha256(_text(document)).hexdigest()})


def _text(document: Mapping[str, Any]) -> bytes:
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def _require_positive(where: str, record: Dimensions | Limits) -> None:
    for entry in dataclasses.fields(record):
        if getattr(record, entry.name) < 1:
            raise BundleError(f"{where}.{entry.name} must be at least 1, not {getattr(record, entry.name)}")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError(f"a key stands twice among {', '.join(sorted(keys))}")
    return dict(pairs)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
