"""A tensor that the decoder keeps between steps, described so that any network's state can be held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dragoman_server.errors import BundleError

__all__ = ["StateTensor"]

StateKind = Literal["kv_cache", "memory"]
ElementType = Literal["float32", "float16", "int8"]

_GROWING_AXIS: Mapping[str, str] = {"kv_cache": "position", "memory": "source_position"}
_MAX_SIZE = 2**31


@dataclass(frozen=True, slots=True)
class StateTensor:
    """One tensor that the decoder keeps between steps; its axis 0 is the row.

    The growing axis is `position` of a `kv_cache` (one more with every step, updated in place: graph input
    `past_NAME`, graph output `present_NAME`) and `source_position` of a `memory` (written once by the encoder
    as its output `NAME`, graph input `NAME` of the decode step). An int8 `memory` is a graph output
    `present_NAME` of the decode step, too, which leaves it as it is: the runtime's attention asks for that.
    """

    name: str
    kind: StateKind
    axes: tuple[str, ...]
    """Such as `("row", "head", "position", "head_dim")`."""
    sizes: Mapping[str, int]
    """Of the axes that neither count rows nor grow."""
    type: ElementType = "float32"

    def __post_init__(self) -> None:
        variable = {"row", self.growing_axis}
        if not self.axes or self.axes[0] != "row" or len(set(self.axes)) != len(self.axes):
            raise BundleError(f"state {self.name}: axes must be distinct and begin with 'row'")
        if self.growing_axis not in self.axes:
            raise BundleError(f"state {self.name}: a {self.kind} needs the axis {self.growing_axis!r}")
        if set(self.sizes) != set(self.axes) - variable:
            raise BundleError(
                f"state {self.name}: sizes must name the axes besides {', '.join(sorted(variable))}"
            )
        if any(not 1 <= size <= _MAX_SIZE for size in self.sizes.values()):
            raise BundleError(f"state {self.name}: every size must be at least 1")

    @property
    def is_returned(self) -> bool:
        """Whether the decode step has it as an output, to be bound to the array that is its input."""
        return self.kind == "kv_cache" or self.type == "int8"

    @property
    def growing_axis(self) -> str:
        """The axis along which the tensor fills."""
        return _GROWING_AXIS[self.kind]

    def shape(self, rows: int, length: int) -> tuple[int, ...]:
        """The shape for that many rows, the growing axis having `length` positions."""
        known = {"row": rows, self.growing_axis: length, **self.sizes}
        return tuple(known[axis] for axis in self.axes)
