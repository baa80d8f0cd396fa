"""What Lightning trains: loss, optimiser and learning rate of a translation model."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from dragoman_model.dataset import Batch
from dragoman_model.losses import fused_output_losses, token_losses
from dragoman_model.schedule import noam
from dragoman_model.transformer import Transformer
from dragoman_server.special_ids import PAD_ID

__all__ = ["DivergenceError", "TranslationTask"]


class DivergenceError(ValueError):
    """Training met a loss or a gradient that is not a number; the message says where, and what helps."""


class TranslationTask(LightningModule):
    """Teacher-forced training with Adam and the inverse-square-root schedule.

    Args:
        model: The network; trained in place.
        learning_rate: Factor on the Noam schedule.
        warmup_steps: Steps until the learning rate's peak.
        label_smoothing: As in `token_losses`.
        r_drop: As in `fused_output_losses`.
    """

    def __init__(
        self,
        model: Transformer,
        learning_rate: float,
        warmup_steps: int,
        label_smoothing: float,
        r_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.label_smoothing = label_smoothing
        self.r_drop = r_drop
        self._generators: list[Tensor] = []

    def hidden(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the output layer is to see, and what it is to say: `[tokens, d_model]` and `[tokens]`.

        Padding is left out before the vocabulary is reached.
        """
        state = self.model.start(self.model.encode(batch.source, batch.source_lengths))
        hidden, _ = self.model.decoder.hidden(batch.target_in, state)  # [batch, target, d_model]
        real = (batch.target_out != PAD_ID).flatten().nonzero().squeeze(1)  # [tokens]
        return hidden.flatten(0, 1).index_select(0, real), batch.target_out.flatten()[real]

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, int]:
        """The loss to train on, the likelihood loss, and how many tokens they are the mean of."""
        doubled = Batch(*(torch.cat((part, part)) for part in batch)) if self.r_drop else batch
        hidden, target = self.hidden(doubled)
        target = target[: len(target) // 2] if self.r_drop else target
        weight = self.model.decoder.output.weight
        loss, likelihood = fused_output_losses(hidden, weight, target, self.label_smoothing, self.r_drop)
        return loss, likelihood, target.numel()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch."""
        loss, likelihood, tokens = self.losses(batch)
        if not torch.isfinite(loss):
            raise DivergenceError(self._divergence(batch))
        self.log("train/loss", loss, batch_size=tokens)
        self.log("train/likelihood", likelihood, batch_size=tokens, prog_bar=True)
        return loss

    def _divergence(self, batch: Batch) -> str:
        broken = [name for name, p in self.model.named_parameters() if not torch.isfinite(p).all()]
        where = (
            f"first in {broken[0]}"
            if broken
            else f"in the activations of a batch of {tuple(batch.source.shape)}"
        )
        return (
            f"the loss is not finite at step {self.global_step}, {where}: lower --learning-rate, raise "
            "--warmup-steps, or train with --precision 32-true; the last saved state is intact"
        )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Likelihood alone: comparable between label smoothings."""
        hidden, target = self.hidden(batch)
        _, likelihood = token_losses(self.model.decoder.output(hidden), target, 0.0)
        self.log("valid/likelihood", likelihood, batch_size=len(target), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam and the schedule of Vaswani et al. 2017, section 5.3."""
        optimizer = torch.optim.Adam(
            self.parameters(), lr=self.learning_rate, betas=(0.9, 0.98), eps=1e-9, foreach=True
        )
        d_model = self.model.config.d_model
        schedule = LambdaLR(optimizer, lambda done: noam(done + 1, d_model, self.warmup_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop on gradients that are not numbers before they reach the weights."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
        if not math.isfinite(norm):
            broken = next(
                n for n, p in self.named_parameters() if p.grad is not None and not p.grad.isfinite().all()
            )
            raise DivergenceError(f"a gradient is not finite at step {self.global_step}, first in {broken}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the generators that decide the dropout masks: those of every process."""
        own = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
        of_all = [cast("Tensor", self.all_gather(state)) for state in own]  # [processes, bytes], or [bytes]
        tables = [states.cpu().reshape(-1, len(state)) for states, state in zip(of_all, own, strict=True)]
        checkpoint["generators"] = [list(states) for states in zip(*tables, strict=True)]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the generators until training starts: setting up may draw from them."""
        self._generators = checkpoint["generators"][self.global_rank]

    def on_train_start(self) -> None:
        """Continue the random numbers where the saved run stood."""
        if self._generators:
            torch.set_rng_state(self._generators[0])
            for device, state in enumerate(self._generators[1:]):
                torch.cuda.set_rng_state(state, device)
