"""The graph that moves rows is the one that its script writes, and moves what it should."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from dragoman_server.engine.onnx_device_arrays import DeviceArray, RowMover

ROOT = Path(__file__).parent.parent.parent


def script() -> ModuleType:
    path = ROOT / "scripts/generate_move_rows.py"
    spec = importlib.util.spec_from_file_location("generate_move_rows", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on_device(content: NDArray[np.generic]) -> DeviceArray:
    array = DeviceArray.zeros(content.shape, content.dtype, "cpu")
    array.owner.update_inplace(np.ascontiguousarray(content).reshape(-1).view(np.uint8))
    return array


def content_of(array: DeviceArray) -> NDArray[np.generic]:
    return array.owner.numpy().view(array.type).reshape(array.shape).copy()


def test_the_file_is_what_the_script_writes() -> None:
    module = script()
    assert module.FILE.read_bytes() == module.move_rows()


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int8])
def test_rows_move_to_longer_ones(kind: type[np.generic]) -> None:
    chance = np.random.default_rng(0)
    source = chance.integers(0, 100, (2, 3, 2, 4, 8)).astype(kind)
    target = chance.integers(0, 100, (2, 5, 2, 6, 8)).astype(kind)
    array = on_device(target)
    RowMover("cpu").move(on_device(source), array, [1, 1, 0], [4, 0, 2])
    target[:, [4, 0, 2], :, :4] = source[:, [1, 1, 0]]
    target[:, [4, 0, 2], :, 4:] = 0
    np.testing.assert_array_equal(content_of(array), target)


def test_rows_move_within_an_array() -> None:
    content = np.random.default_rng(0).standard_normal((2, 5, 2, 6, 8)).astype(np.float16)
    array = on_device(content)
    RowMover("cpu").move(array, array, [0, 0, 3], [1, 4, 2])
    content[:, [1, 4, 2]] = content[:, [0, 0, 3]]
    np.testing.assert_array_equal(content_of(array), content)
