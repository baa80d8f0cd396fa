"""What happens between training steps: saving, stopping, measuring."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities.exceptions import SIGTERMException

from dragoman_model.checkpoint import save_weights
from dragoman_model.dataset import Batch
from dragoman_model.task import TranslationTask
from dragoman_server.special_ids import PAD_ID

__all__ = ["RunProgress", "SaveRun", "StopOnSignal", "Throughput"]


class SaveRun(Callback):
    """Saves weights for averaging and the state to resume from, after every validation and on SIGTERM.

    Args:
        folder: Where `resume.safetensors` and `weights/` go.
        keep: Weight files kept: so many of the last ones and as many of the best ones.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self.history: list[tuple[int, float]] = []
        """Step and validation loss of every validation."""

    @property
    def resume_file(self) -> Path:
        """The state of the latest save."""
        return self.folder / "resume.safetensors"

    def weights_file(self, step: int) -> Path:
        """The weights after a step."""
        return self.folder / "weights" / f"step-{step:08d}.safetensors"

    def chosen(self, *, best: bool, count: int) -> list[int]:
        """The steps of the last, or the best, `count` validations."""
        ranked = sorted(self.history, key=lambda entry: entry[1]) if best else self.history[::-1]
        return [step for step, _ in ranked[:count]]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, then delete weights that neither average can need any more."""
        assert isinstance(pl_module, TranslationTask)
        self.history.append((trainer.global_step, float(trainer.callback_metrics["valid/likelihood"])))
        if trainer.is_global_zero:
            target = self.weights_file(trainer.global_step)
            target.parent.mkdir(parents=True, exist_ok=True)
            save_weights(pl_module.model.state_dict(), target)
            kept = {*self.chosen(best=True, count=self.keep), *self.chosen(best=False, count=self.keep)}
            for step, _ in self.history:
                if step not in kept:
                    self.weights_file(step).unlink(missing_ok=True)
        trainer.save_checkpoint(self.resume_file)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A run that is told to stop does so between batches: the state is whole."""
        if isinstance(exception, SIGTERMException) and _between_steps(trainer):
            trainer.save_checkpoint(self.resume_file)

    def state_dict(self) -> dict[str, Any]:
        """Saved with the run."""
        return {"history": [list(entry) for entry in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restored with the run."""
        self.history = [(step, loss) for step, loss in state_dict["history"]]


class StopOnSignal(Callback):
    """Ends a run between two steps once one of its processes, or all of them, got SIGTERM or Ctrl-C.

    Lightning's own handler sends and waits from within the signal, wherever training is at that moment: two
    processes that are told by whoever manages both would wait for each other for ever.
    """

    def __init__(self) -> None:
        self._told = False
        self._trainer: Trainer | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the handlers; Lightning puts back those of before the run."""
        self._trainer = trainer
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def check(self) -> None:
        """Stop, all processes at the same step; to be called before a batch is drawn, lest it be lost.

        Raises:
            SIGTERMException: one was told to.
        """
        trainer = self._trainer
        if trainer is None or not _between_steps(trainer):
            return
        if trainer.strategy.reduce_boolean_decision(self._told, all=False):
            raise SIGTERMException

    def _note(self, *_: object) -> None:
        self._told = True


def _between_steps(trainer: Trainer) -> bool:
    """Whether no gradients wait for the batches that complete their step."""
    completed: int = trainer.fit_loop.epoch_loop.batch_progress.total.completed
    return completed % trainer.accumulate_grad_batches == 0


class Throughput(Callback):
    """Counts target tokens and the time spent training on them; validation and saving are not in it."""

    def __init__(self) -> None:
        self.tokens = 0
        self.seconds = 0.0
        self._since = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        """Stop the clock and report the rate so far."""
        self.seconds += time.perf_counter() - self._since
        self.tokens += int((batch.target_out != PAD_ID).sum())
        pl_module.log("train/tokens_per_second", self.tokens / self.seconds, prog_bar=True)

    def state_dict(self) -> dict[str, Any]:
        """Saved with the run."""
        return {"tokens": self.tokens, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restored with the run."""
        self.tokens, self.seconds = state_dict["tokens"], state_dict["seconds"]


class RunProgress(RichProgressBar):
    """A progress bar over the steps of the run."""

    def __init__(self, batches: int) -> None:
        super().__init__(refresh_rate=10, console_kwargs={"stderr": True})
        self._batches = batches

    @property
    def total_train_batches(self) -> int:
        """What is 100 %."""
        return self._batches

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands beside the bar: all but the number of the log."""
        shown: dict[str, Any] = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        return shown

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"
