"""Lightning's training state as one safetensors file with JSON in its header, instead of a pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["SafetensorsIO"]


class SafetensorsIO(CheckpointIO):
    """Saves and loads what Lightning wants kept: nested dicts, lists, tuples, tensors and scalars."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write atomically: a crash while saving leaves the state that was saved before."""
        tensors: dict[str, Tensor] = {}
        tree = _pack(checkpoint, tensors)
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        save_file(tensors, partial, metadata={"tree": json.dumps(tree)})
        partial.replace(target)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read what `save_checkpoint` wrote, tensors on the CPU."""
        with safe_open(str(path), framework="pt") as file:
            tree = json.loads(file.metadata()["tree"])
            return _unpack(tree, file.get_tensor)  # type: ignore[no-any-return]

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete the file."""
        Path(path).unlink(missing_ok=True)


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON for `value`, each container as a tagged list; tensors go to `tensors`, their names stay."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return ["tensor", name]
    if isinstance(value, dict):
        return ["dict", [[key, _pack(item, tensors)] for key, item in value.items()]]
    if isinstance(value, (list, tuple)):
        tag = "tuple" if isinstance(value, tuple) else "list"
        return [tag, [_pack(item, tensors) for item in value]]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a training state cannot hold a {type(value).__name__}")


def _unpack(tree: Any, tensor: Callable[[str], torch.Tensor]) -> Any:
    if not isinstance(tree, list):
        return tree
    tag, content = tree
    if tag == "tensor":
        return tensor(content)
    if tag == "dict":
        return {key: _unpack(item, tensor) for key, item in content}
    items = [_unpack(item, tensor) for item in content]
    return tuple(items) if tag == "tuple" else items
