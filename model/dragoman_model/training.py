"""A training run from parallel text to a checkpoint; stopped at any time, it goes on where it stood."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from dragoman_model.callbacks import RunProgress, SaveRun, StopOnSignal, Throughput
from dragoman_model.checkpoint import Checkpoint, average_weights, load_weights, save_weights
from dragoman_model.config import ModelConfig, preset_config
from dragoman_model.corpus import ParallelCorpus
from dragoman_model.curve import draw_curve
from dragoman_model.dataset import BatchStream, DatasetOptions, TokenisedCorpus, tokenise
from dragoman_model.loaders import TrainingBatches, ValidationBatches
from dragoman_model.memory import keep_freed_memory
from dragoman_model.options import TrainOptions
from dragoman_model.resume import SafetensorsIO
from dragoman_model.run_folder import claim_run_folder, keep_tokenizers, run_tokenizers
from dragoman_model.task import TranslationTask
from dragoman_model.transformer import Transformer
from dragoman_server.tokenizer import Tokenizer

__all__ = ["Provenance", "train_model"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Provenance:
    """What the training data is; goes into the checkpoint, the bundle and its model card."""

    source_language: str
    target_language: str
    data: str = ""
    """Where the text comes from."""
    licence: str = ""


def train_model(
    train: ParallelCorpus,
    valid: ParallelCorpus,
    out: Path,
    options: TrainOptions,
    provenance: Provenance,
    initial: Checkpoint | None = None,
) -> dict[str, Any]:
    """Train, or go on with the run that `out` holds, and leave the averaged checkpoint in `out`.

    Args:
        train: Training pairs.
        valid: Validation pairs; decide early stopping and the best weights.
        out: Folder of the checkpoint; `out/run` holds what resuming needs, logs and the training curve.
        options: All settings.
        provenance: Languages and origin of the text.
        initial: Begin with its weights and its tokenizers (fine-tuning); the dimensions must be the same.

    Returns:
        The run's report, also in `out/report.json`: steps, minutes, tokens per second, losses, parameters.

    Raises:
        ValueError: the text or the options cannot be used, or `out` holds a run with other options.
        DivergenceError: the loss or a gradient is not a number.
        SystemExit: SIGTERM arrived; the run is saved.
    """
    run_folder = out / "run"
    size = options.vocabulary.vocabulary_size
    _model_config(options, size, size)  # dimensions that do not fit are reported before any work
    save = SaveRun(run_folder, keep=options.run.average)
    claim_run_folder(run_folder, options, train, valid, initial, save.resume_file)
    if initial is not None:
        keep_tokenizers(run_folder, initial.source_tokenizer, initial.target_tokenizer)
    keep_freed_memory()
    seed_everything(options.run.seed, verbose=False)
    stop = StopOnSignal()
    trainer = _trainer(run_folder, options, save, stop)
    tokenizers = run_tokenizers(run_folder, train, options)
    data, held_out = _tokenised(train, valid, tokenizers, run_folder, options)
    model = Transformer(_model_config(options, *(tokenizer.vocabulary_size for tokenizer in tokenizers)))
    if initial is not None:
        _take_weights(model, initial)
    started = time.monotonic()
    _fit(trainer, model, data, held_out, options, save.resume_file, stop)
    report = _report(trainer, save, model, data, options, time.monotonic() - started)
    if trainer.is_global_zero:
        _finish(model, save, tokenizers, out, options, provenance, report)
    return report


def _tokenised(
    train: ParallelCorpus,
    valid: ParallelCorpus,
    tokenizers: tuple[Tokenizer, Tokenizer],
    run_folder: Path,
    options: TrainOptions,
) -> tuple[TokenisedCorpus, TokenisedCorpus]:
    _log.info("tokenising")
    cache, seed = run_folder / "data", options.run.seed
    data = tokenise(train, tokenizers, cache, options=options.dataset, augment=options.augment, seed=seed)
    _log.info("training pairs: %s; %d with augmentation", data.report, data.pairs)
    plain = DatasetOptions(max_tokens=options.dataset.max_tokens)
    held_out = tokenise(valid, tokenizers, cache, options=plain)
    _log.info("validation pairs: %s", held_out.report)
    return data, held_out


def _model_config(options: TrainOptions, source_size: int, target_size: int) -> ModelConfig:
    return preset_config(
        options.model.preset,
        source_vocabulary_size=source_size,
        target_vocabulary_size=target_size,
        shared_vocabulary=options.vocabulary.shared_vocabulary,
        **options.model.changes(),
    )


def _take_weights(model: Transformer, initial: Checkpoint) -> None:
    try:
        model.load_state_dict(initial.model.state_dict())
    except RuntimeError as error:
        raise ValueError(
            "the initial checkpoint has other dimensions: give the preset and sizes it was trained with"
        ) from error


def _trainer(run_folder: Path, options: TrainOptions, save: SaveRun, stop: StopOnSignal) -> Trainer:
    """Lightning's trainer.

    Raises:
        ValueError: the device is not there.
    """
    run, optimisation = options.run, options.optimisation
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no tips, no advertisements
    callbacks: list[Callback] = [
        stop,
        Throughput(),
        RunProgress(run.max_steps * optimisation.accumulate),
    ]
    if run.patience:
        callbacks.append(EarlyStopping("valid/likelihood", patience=run.patience, check_finite=True))
    try:
        return Trainer(
            accelerator=run.device,
            devices=run.devices,
            precision=run.precision,
            max_steps=run.max_steps,
            max_epochs=-1,
            max_time=None if run.max_minutes is None else timedelta(minutes=run.max_minutes),
            val_check_interval=run.validate_every * optimisation.accumulate,
            check_val_every_n_epoch=None,
            accumulate_grad_batches=optimisation.accumulate,
            gradient_clip_val=optimisation.gradient_clip or None,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            log_every_n_steps=50,
            plugins=[SafetensorsIO()],
            callbacks=[*callbacks, save],  # last: it saves the state of the others
            logger=[
                TensorBoardLogger(run_folder, "tensorboard", ""),
                CSVLogger(run_folder, "csv", flush_logs_every_n_steps=10),
            ],
        )
    except MisconfigurationException as error:
        raise ValueError(f"--device {run.device} --devices {run.devices}: {error}") from error


def _fit(
    trainer: Trainer,
    model: Transformer,
    data: TokenisedCorpus,
    held_out: TokenisedCorpus,
    options: TrainOptions,
    resume_file: Path,
    stop: StopOnSignal,
) -> None:
    optimisation, seed = options.optimisation, options.run.seed
    task = TranslationTask(
        model,
        optimisation.learning_rate,
        optimisation.warmup_steps,
        optimisation.label_smoothing,
        optimisation.r_drop,
    )
    stream = BatchStream(
        data, optimisation.batch_tokens, seed, rank=trainer.global_rank, world_size=trainer.world_size
    )
    checks = ValidationBatches(BatchStream(held_out, optimisation.batch_tokens, seed))
    state = resume_file if resume_file.is_file() else None
    with _quiet_library():
        try:
            trainer.fit(task, TrainingBatches(stream, before_each=stop.check), checks, ckpt_path=state)
        except SIGTERMException:  # saved by then
            # One exit code for the run: the first process kills itself where another has failed.
            raise SystemExit(128 + signal.SIGTERM if trainer.is_global_zero else 0) from None


@contextlib.contextmanager
def _quiet_library() -> Iterator[None]:
    """Without Lightning's advice on data loaders, and the deprecated names of torch that it calls."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec")
        yield


def _report(
    trainer: Trainer,
    save: SaveRun,
    model: Transformer,
    data: TokenisedCorpus,
    options: TrainOptions,
    seconds: float,
) -> dict[str, Any]:
    throughput = next(callback for callback in trainer.callbacks if isinstance(callback, Throughput))  # type: ignore[attr-defined]
    return {
        "steps": trainer.global_step,
        "parameters": model.num_parameters,
        "pairs": asdict(data.report),
        "training_minutes": round(throughput.seconds / 60, 1),
        "minutes_of_this_process": round(seconds / 60, 1),
        "target_tokens": throughput.tokens,
        "target_tokens_per_second": round(throughput.tokens / max(throughput.seconds, 1e-9)),
        "best_valid_likelihood": min((loss for _, loss in save.history), default=None),
        "threads": torch.get_num_threads(),
        "seed": options.run.seed,
        "torch": torch.__version__,
    }


def _finish(
    model: Transformer,
    save: SaveRun,
    tokenizers: tuple[Tokenizer, Tokenizer],
    out: Path,
    options: TrainOptions,
    provenance: Provenance,
    report: dict[str, Any],
) -> None:
    """Average the chosen weights into the checkpoint and draw the curve."""
    steps = save.chosen(best=options.run.average_of == "best", count=options.run.average)
    if steps:
        averaged = save.folder / "averaged.safetensors"
        save_weights(average_weights([save.weights_file(step) for step in steps]), averaged)
        load_weights(model, averaged)
        averaged.unlink()
    report["averaged_steps"] = sorted(steps)
    metadata = {
        "provenance": provenance.data,
        "licence": provenance.licence,
        "training": report,
        "options": asdict(options),
    }
    languages = provenance.source_language, provenance.target_language
    Checkpoint(model, *tokenizers, *languages, metadata).save(out)
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    draw_curve(save.folder / "csv", out / "curve.png")
