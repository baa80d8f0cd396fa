"""Scores translations against references with sacreBLEU (Post 2018, arXiv:1804.08771)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacremoses import MosesPunctNormalizer, MosesTokenizer

from dragoman_model.checkpoint import Checkpoint
from dragoman_model.reference import beam_search
from dragoman_server.engine.messages import DecodingOptions, output_limit

__all__ = ["Scores", "Translate", "checkpoint_translator", "moses_lower", "read_lines", "score"]

Translate = Callable[[Sequence[str]], list[str]]
"""Translates a few texts."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Corpus scores from 0 to 100, with the signatures that make them comparable."""

    bleu: float
    bleu_signature: str
    chrf: float
    chrf_signature: str
    sentences: int

    def records(self, test_set: str) -> list[dict[str, str | float]]:
        """One record a metric, as a bundle's manifest has them."""
        found = {"BLEU": (self.bleu, self.bleu_signature), "chrF": (self.chrf, self.chrf_signature)}
        return [
            {"metric": metric, "value": round(value, 2), "test_set": test_set, "signature": signature}
            for metric, (value, signature) in found.items()
        ]

    def __str__(self) -> str:
        return f"BLEU {self.bleu:.2f} ({self.bleu_signature})\nchrF {self.chrf:.2f} ({self.chrf_signature})"


def score(outputs: Sequence[str], references: Sequence[str], *, tokenised: bool = False) -> Scores:
    """BLEU and chrF of outputs against one reference each.

    Args:
        outputs: Translations.
        references: As many references.
        tokenised: Both are tokenised already: compare tokens as they are.

    Raises:
        ValueError: not as many outputs as references, or none.
    """
    if len(outputs) != len(references) or not outputs:
        raise ValueError(f"{len(outputs)} translations cannot be scored against {len(references)} references")
    bleu, chrf = BLEU(tokenize="none" if tokenised else "13a", force=tokenised), CHRF()
    bleu_score = bleu.corpus_score(list(outputs), [list(references)])
    chrf_score = chrf.corpus_score(list(outputs), [list(references)])
    return Scores(
        bleu_score.score, str(bleu.get_signature()), chrf_score.score, str(chrf.get_signature()), len(outputs)
    )


def moses_lower(texts: Iterable[str], language: str) -> list[str]:
    """Punctuation-normalised, lower-cased and Moses-tokenised, as Wu et al. 2021 (arXiv:2105.14462) score.

    Like the Moses scripts, and the references made with them, this writes a quotation mark as `&quot;`.
    """
    normalizer, tokenizer = MosesPunctNormalizer(lang=language), MosesTokenizer(lang=language)
    return [tokenizer.tokenize(normalizer.normalize(text).lower(), return_str=True) for text in texts]


def read_lines(file: Path) -> list[str]:
    """The lines of a UTF-8 file; a line ends in a line feed, or a carriage return and one.

    Raises:
        ValueError: the file is not UTF-8.
    """
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: line {error.object[: error.start].count(10) + 1} is not UTF-8") from error
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def checkpoint_translator(checkpoint: Checkpoint, options: DecodingOptions) -> Translate:
    """Translate with the torch reference decoder: slow, and right by definition."""

    def translate(texts: Sequence[str]) -> list[str]:
        return [_translate_one(checkpoint, text, options) for text in texts]

    return translate


def _translate_one(checkpoint: Checkpoint, text: str, options: DecodingOptions) -> str:
    source = checkpoint.source_ids(text)
    best = beam_search(
        checkpoint.model,
        source,
        beam_size=options.beam_size,
        max_output_tokens=options.max_output_tokens or output_limit(len(source)),
        alpha=options.length_penalty,
        special=checkpoint.special,
        first_token=checkpoint.languages.first(checkpoint.direction),
    )[0]
    return checkpoint.target_tokenizer.decode(best.tokens)
