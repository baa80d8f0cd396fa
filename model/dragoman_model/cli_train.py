"""The command `dragoman train`."""

from __future__ import annotations

import json as json_format
import logging
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from dragoman_model.augment import AugmentOptions
from dragoman_model.corpus import ParallelCorpus
from dragoman_model.dataset import DatasetOptions
from dragoman_model.options import ModelOptions, OptimisationOptions, RunOptions, TrainOptions
from dragoman_model.vocabulary import VocabularyOptions

__all__ = ["train"]

_Files = Annotated[tuple[Path, ...], Parameter(consume_multiple=True, negative="")]
_FLAGS = Parameter(name="*")


def train(
    *,
    train: _Files,
    valid: _Files,
    source: str,
    target: str,
    out: Path,
    initial: Path | None = None,
    provenance: str = "",
    licence: str = "",
    model: Annotated[ModelOptions, _FLAGS] = ModelOptions(),  # noqa: B008  # frozen
    vocabulary: Annotated[VocabularyOptions, _FLAGS] = VocabularyOptions(),  # noqa: B008
    dataset: Annotated[DatasetOptions, _FLAGS] = DatasetOptions(),  # noqa: B008
    augment: Annotated[AugmentOptions, _FLAGS] = AugmentOptions(),  # noqa: B008
    optimisation: Annotated[OptimisationOptions, _FLAGS] = OptimisationOptions(),  # noqa: B008
    run: Annotated[RunOptions, _FLAGS] = RunOptions(),  # noqa: B008
    json: bool = False,
) -> None:
    """Train a translation model; run again with the same options, it goes on where it stopped.

    Args:
        train: Training text: two line-aligned files (source, target), or one TSV file.
        valid: Validation text, likewise.
        source: Source language, such as en.
        target: Target language, such as de.
        out: Folder of the checkpoint.
        initial: Checkpoint to begin with instead of random weights: fine-tuning. Brings its tokenizers.
        provenance: Where the text comes from; stands in the checkpoint and the model card.
        licence: The text's licence.
        model: The network.
        vocabulary: The tokenizer.
        dataset: How text becomes ids.
        augment: Copies made for robustness.
        optimisation: How the weights are moved.
        run: How long, on what, what to keep.
        json: Print the report as JSON.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # torch and Lightning take seconds to import; flags that are wrong are reported before that.
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from dragoman_model.checkpoint import load_checkpoint
    from dragoman_model.training import Provenance, train_model

    options = TrainOptions(model, vocabulary, dataset, augment, optimisation, run)
    report = train_model(
        ParallelCorpus(train),
        ParallelCorpus(valid),
        out,
        options,
        Provenance(source, target, provenance, licence),
        load_checkpoint(initial) if initial else None,
    )
    if getattr(rank_zero_only, "rank", 0) != 0:
        return  # another process of the same run prints
    if json:
        sys.stdout.write(json_format.dumps(report) + "\n")
    else:
        sys.stdout.write("".join(f"{name.replace('_', ' ')}: {value}\n" for name, value in report.items()))
