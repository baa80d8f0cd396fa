"""The texts that are sent: one a line, with a reference translation each where there is one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Corpus"]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts to translate.

    Raises:
        ValueError: there is none, or not as many references as texts.
    """

    name: str
    texts: tuple[str, ...]
    references: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.texts:
            raise ValueError(f"{self.name}: no text in it: give a file with one sentence per line")
        if self.references is not None and len(self.references) != len(self.texts):
            raise ValueError(
                f"{self.name} has {len(self.texts)} lines and its reference {len(self.references)}: "
                "they must be line-aligned"
            )

    @classmethod
    def read(cls, file: Path, reference: Path | None = None) -> Corpus:
        """Read files of one text per line; a blank text is left out together with its reference.

        Raises:
            ValueError: a file is missing, empty, not UTF-8 or not line-aligned with the other.
        """
        texts, references = _lines(file), None if reference is None else _lines(reference)
        whole = cls(file.name, tuple(texts), None if references is None else tuple(references))
        kept = [i for i, text in enumerate(whole.texts) if text.strip()]
        return cls(
            whole.name,
            tuple(whole.texts[i] for i in kept),
            None if whole.references is None else tuple(whole.references[i] for i in kept),
        )

    @property
    def sha256(self) -> str:
        """Of the texts."""
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()


def _lines(file: Path) -> list[str]:
    try:
        # Not `splitlines`: a text may hold form feeds and other separators that it knows.
        lines = file.read_bytes().decode("utf-8-sig").removesuffix("\n").split("\n")
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 at byte {error.start}") from error
    return [line.removesuffix("\r") for line in lines]
