"""What Lightning draws batches from."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch.utils.data import IterableDataset

from dragoman_model.dataset import Batch, BatchStream

__all__ = ["TrainingBatches", "ValidationBatches"]


class TrainingBatches(IterableDataset[Batch]):
    """A stream of batches for Lightning, which saves and restores its position.

    Args:
        stream: The batches.
        before_each: Called before a batch is drawn; what it raises ends the run at that position.
    """

    def __init__(self, stream: BatchStream, before_each: Callable[[], None] = lambda: None) -> None:
        self._stream = stream
        self._before_each = before_each

    def __len__(self) -> int:
        """Practically endless; were it unknown, Lightning would fetch a batch ahead of the one in hand."""
        return 2**40

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._stream)
        while True:
            self._before_each()
            yield next(batches)

    def state_dict(self) -> dict[str, int]:
        """The position."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a position."""
        self._stream.load_state_dict(state)


class ValidationBatches:
    """One pass over the validation set."""

    def __init__(self, stream: BatchStream) -> None:
        self._batches = list(stream.single_pass())

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)
