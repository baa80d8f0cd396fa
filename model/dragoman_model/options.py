"""The settings of a training run: every default once, each field a flag of `dragoman train`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from dragoman_model.augment import AugmentOptions
from dragoman_model.config import Positions, Preset
from dragoman_model.dataset import DatasetOptions
from dragoman_model.vocabulary import VocabularyOptions

__all__ = ["ModelOptions", "OptimisationOptions", "RunOptions", "TrainOptions"]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """The network: a preset, and whatever is to differ from it."""

    preset: Preset = "small"
    """tiny: 4+4 layers of width 128; small: 4+4 of 256; base: 6+6 of 512 and big: 6+6 of 1024 as in
    Vaswani et al. 2017."""
    d_model: int | None = None
    num_heads: int | None = None
    d_ff: int | None = None
    encoder_layers: int | None = None
    decoder_layers: int | None = None
    dropout: float | None = None
    attention_dropout: float | None = None
    activation_dropout: float | None = None
    norm_first: bool | None = None
    positions: Positions | None = None
    max_positions: int | None = None
    tied_output: bool | None = None

    def changes(self) -> dict[str, Any]:
        """The fields set beside the preset."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "preset"}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class OptimisationOptions:
    """How the weights are moved."""

    batch_tokens: int = 4096
    """Bound on the padded tokens of one batch, on its longer side."""
    accumulate: int = 1
    """Batches whose gradients are summed into one step."""
    learning_rate: float = 1.0
    """Factor on the schedule of Vaswani et al. 2017, equation 3."""
    warmup_steps: int = 4000
    label_smoothing: float = 0.1
    r_drop: float = 0.0
    """Weight of R-Drop (Liang et al. 2021): every batch goes through the network twice, and predictions that
    differ between the two dropout masks cost. Doubles the work of a step; 5 is usual; 0 for none."""
    gradient_clip: float = 1.0
    """Bound on the gradients' norm; 0 for none."""

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "accumulate", "warmup_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.learning_rate > 0.0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, not {self.label_smoothing}")
        for name in ("r_drop", "gradient_clip"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How long to train, on what, and what to keep."""

    max_steps: int = 100_000
    max_minutes: float | None = None
    """Stop after so many minutes, those before a resume included."""
    validate_every: int = 1000
    """Steps between validations; after each one the run can be resumed from there."""
    patience: int = 10
    """Stop after so many validations in a row without a better one; 0 for never."""
    average: int = 5
    """Saved weights to average into the final model; 1 for none."""
    average_of: Literal["last", "best"] = "last"
    device: str = "auto"
    """cpu, cuda, or auto."""
    devices: int = 1
    """Devices that train together, each on its own share of the batches."""
    precision: Literal["bf16-mixed", "32-true", "16-mixed"] = "bf16-mixed"
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("max_steps", "validate_every", "average", "devices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.patience < 0:
            raise ValueError(f"patience must be at least 0, not {self.patience}")
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise ValueError(f"max_minutes must be above 0, not {self.max_minutes}")


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """A whole training run."""

    model: ModelOptions = field(default_factory=ModelOptions)
    vocabulary: VocabularyOptions = field(default_factory=VocabularyOptions)
    dataset: DatasetOptions = field(default_factory=DatasetOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    optimisation: OptimisationOptions = field(default_factory=OptimisationOptions)
    run: RunOptions = field(default_factory=RunOptions)
