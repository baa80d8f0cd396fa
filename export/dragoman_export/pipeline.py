"""The service's way from text to text, on an engine of the exporter's."""

from __future__ import annotations

from dragoman_export.options import ExportError
from dragoman_model.checkpoint import Checkpoint
from dragoman_server.bundle import Bundle
from dragoman_server.in_flight import SegmentEngine
from dragoman_server.special_ids import SpecialIds
from dragoman_server.tokenizer import Tokenizer
from dragoman_server.translator import Translator

__all__ = ["require_tokenizers", "text_pipeline"]


def text_pipeline(checkpoint: Checkpoint, engine: SegmentEngine, max_segments: int) -> Translator:
    """Splits, encodes, translates, decodes and joins as the service does with the checkpoint's bundle."""
    return Translator(
        engine,
        checkpoint.source_tokenizer,
        checkpoint.target_tokenizer,
        eos_id=checkpoint.special.eos,
        max_source_tokens=checkpoint.config.max_positions,
        max_segments=max_segments,
        languages=checkpoint.languages,
    )


def require_tokenizers(checkpoint: Checkpoint, bundle: Bundle) -> None:
    """Refuse a bundle whose tokenizers, read back from its files, are not the checkpoint's to the byte.

    Ids alone do not show this: to the network any vocabulary is as good as another.

    Raises:
        ExportError: a tokenizer is another; the message names the file and where it differs.
    """
    files = bundle.manifest.tokenizers
    source, target = checkpoint.source_tokenizer, checkpoint.target_tokenizer
    for side, file, expected, other in (
        ("source", files.source, source, target),
        ("target", files.target, target, source),
    ):
        content = bundle.read(file)
        if content != expected.model:
            how = "it is that of the other side"
            if content != other.model:
                how = _first_other(content, expected, checkpoint.special)
            raise ExportError(
                f"the {side} tokenizer of the bundle, {file}, differs from the checkpoint's: {how}; "
                "nothing was written"
            )


def _first_other(content: bytes, expected: Tokenizer, special: SpecialIds) -> str:
    """Where a tokenizer first differs from the one expected."""
    try:
        found = Tokenizer(content, special)
    except ValueError as error:
        return str(error)
    if found.vocabulary_size != expected.vocabulary_size:
        return f"it has {found.vocabulary_size} pieces instead of {expected.vocabulary_size}"
    for token in range(expected.vocabulary_size):
        one, other = found.decode([token]), expected.decode([token])
        if one != other:
            return f"token {token} is {one!r} instead of {other!r}"
    return "its pieces are the same, their scores or rules are not"
