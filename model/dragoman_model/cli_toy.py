"""The command `dragoman toy`: writes a toy corpus."""

from __future__ import annotations

import sys
from pathlib import Path

from dragoman_model.toy import write_corpus

__all__ = ["toy"]


def toy(out: Path, *, pairs: int = 20000, seed: int = 1) -> None:
    """Write an English-German toy corpus: train, valid and test, each as .en and .de.

    Args:
        out: Directory for the six files; made if missing.
        pairs: Sentence pairs in the training part.
        seed: Another seed gives other sentences.
    """
    sizes = write_corpus(out, pairs=pairs, seed=seed)
    sys.stdout.write(f"{out}: {sizes.train} training, {sizes.valid} validation and {sizes.test} test pairs\n")
