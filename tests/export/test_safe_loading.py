"""A real bundle, damaged or made to do harm, is refused before anything comes of it."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from dragoman_export.description import records
from dragoman_model.checkpoint import CheckpointError, load_checkpoint
from dragoman_server.bundle import Bundle
from dragoman_server.cli_inspect import inspect
from dragoman_server.config import ServerConfig
from dragoman_server.errors import BundleError
from dragoman_server.loading import load
from dragoman_server.metrics import ServerMetrics

FILES = ("bundle.json", "encoder.fp32.onnx", "decode_step.fp32.onnx", "tokenizer.spm", "MODEL_CARD.md")
LOADED = FILES[:-1]
"""What a server reads; the card is for people."""
HUGE = 10**9
MAX_GROWTH_KIB = 64 * 1024


@pytest.fixture
def folder(plain: tuple[Path, Bundle], tmp_path: Path) -> Path:
    """A copy of a real bundle."""
    return Path(shutil.copytree(plain[1].path, tmp_path / "tiny" / "1"))


def serve(folder: Path) -> None:
    load(folder, ServerConfig(models=folder, workers=1, threads=1), ServerMetrics()).engine.close()


def replace(folder: Path, name: str, content: bytes) -> None:
    """Put a file into a bundle, as one whom the manifest obeys would."""
    manifest = Bundle.open(folder).manifest
    files = {**manifest.files, **records({name: content})}
    (folder / name).write_bytes(content)
    (folder / "bundle.json").write_bytes(dataclasses.replace(manifest, files=files).to_json())


def assert_refused(folder: Path, name: str, read: Callable[[Path], None] = serve) -> str:
    with pytest.raises(BundleError) as caught:
        read(folder)
    message = str(caught.value)
    assert name in message
    assert "\n" not in message
    return message


def test_the_bundle_is_served_as_it_is(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    serve(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_noticed_wherever_it_is(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    generator = np.random.default_rng(0)
    for place in {0, len(content) - 1, *generator.integers(0, len(content), 60).tolist()}:
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(generator.integers(8))
        (folder / name).write_bytes(flipped)
        assert_refused(folder, name, inspect)
        if name in LOADED:
            assert_refused(folder, name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_off_is_noticed(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    for length in (0, 1, len(content) // 2, len(content) - 1):
        (folder / name).write_bytes(content[:length])
        assert_refused(folder, name)


class Canary:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.open, (str(self.mark), os.O_CREAT | os.O_WRONLY)


def canary(tmp_path: Path) -> tuple[Path, bytes]:
    """The mark, and what leaves it."""
    mark = tmp_path / "unpickled"
    content = pickle.dumps(Canary(mark))
    os.close(pickle.loads(content))
    mark.unlink()  # it does leave one
    return mark, content


@pytest.mark.parametrize("name", ["encoder.fp32.onnx", "decode_step.fp32.onnx", "tokenizer.spm"])
def test_nothing_of_a_bundle_is_unpickled(folder: Path, tmp_path: Path, name: str) -> None:
    mark, content = canary(tmp_path)
    replace(folder, name, content)
    assert_refused(folder, name)
    assert not mark.exists()


def test_a_pickle_beside_the_files_is_refused(folder: Path, tmp_path: Path) -> None:
    mark, content = canary(tmp_path)
    (folder / "model.pkl").write_bytes(content)
    assert_refused(folder, "model.pkl")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.spm"])
def test_nothing_of_a_checkpoint_is_unpickled(plain: tuple[Path, Bundle], tmp_path: Path, name: str) -> None:
    mark, content = canary(tmp_path)
    checkpoint = Path(shutil.copytree(plain[0], tmp_path / "checkpoint"))
    (checkpoint / name).write_bytes(content)
    with pytest.raises((CheckpointError, ValueError)):
        load_checkpoint(checkpoint)
    assert not mark.exists()


def add(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], **constants: np.ndarray) -> None:
    """Let a graph compute `bomb` of constants, and add its largest number to an embedding."""
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.initializer.append(numpy_helper.from_array(np.array([0, 1], np.int64)[:1], "all"))
    nodes = [*nodes, helper.make_node("ReduceMax", ["bomb"], ["largest"], keepdims=0)]
    place = next(i for i, node in enumerate(graph.node) if node.op_type == "Gather")
    embedding = graph.node[place].output[0]
    graph.node[place].output[0] = f"{embedding}.before"
    nodes.append(helper.make_node("Add", [f"{embedding}.before", "largest"], [embedding]))
    for node in reversed(nodes):
        graph.node.insert(place + 1, node)


def declared(graph: onnx.GraphProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "bomb")
    tensor.dims[:] = [HUGE]
    graph.initializer.append(tensor)
    add(graph, [])


def constant_of_shape(graph: onnx.GraphProto) -> None:
    add(graph, [helper.make_node("ConstantOfShape", ["shape"], ["bomb"])], shape=np.array([HUGE]))


def expanded(graph: onnx.GraphProto) -> None:
    node = helper.make_node("Expand", ["one", "shape"], ["bomb"])
    add(graph, [node], one=np.float32(1.0), shape=np.array([HUGE]))


def expanded_input(graph: onnx.GraphProto) -> None:
    """Depends on an input: computed not when the graph is loaded, but at the first sentence."""
    nodes = [
        helper.make_node("Cast", ["source_lengths"], ["lengths"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["lengths"], ["longest"], keepdims=0),
        helper.make_node("Expand", ["longest", "shape"], ["bomb"]),
    ]
    add(graph, nodes, shape=np.array([HUGE]))


def broadcast(graph: onnx.GraphProto) -> None:
    side = int(HUGE**0.5) + 1
    column, row = np.ones((side, 1), np.float32), np.ones((1, side), np.float32)
    add(graph, [helper.make_node("Add", ["column", "row"], ["bomb"])], column=column, row=row)


def in_a_node(graph: onnx.GraphProto) -> None:
    value = numpy_helper.from_array(np.zeros(4, np.float32))
    value.dims[:] = [HUGE]
    add(graph, [helper.make_node("Constant", [], ["bomb"], value=value)])


BOMBS = {
    declared: "declares a weight 'bomb' of more numbers than it holds: [1000000000]",
    constant_of_shape: "has a node 'ConstantOfShape', which no graph of a bundle has",
    expanded: "has a node Expand that depends on no input",
    expanded_input: "has a node Expand to a shape that nothing else has",
    broadcast: "has a node Add that depends on no input",
    in_a_node: "has a node with a tensor or a graph within it",
}

# As a server starts: some shapes cost their memory when the graph first runs, in the warm-up.
SERVE = """
import asyncio
import sys
from pathlib import Path
from dragoman_server.config import ServerConfig
from dragoman_server.errors import BundleError
from dragoman_server.loading import load, warm_up
from dragoman_server.metrics import ServerMetrics

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])

folder, before = Path(sys.argv[1]), peak()
try:
    loaded = load(folder, ServerConfig(models=folder, workers=1, threads=1), ServerMetrics())
    with loaded.engine:
        asyncio.run(warm_up(loaded.served, 1))
except BundleError as error:
    print(peak() - before, error)
"""


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_a_graph_of_a_huge_shape_is_refused_before_there_is_room_for_it(
    folder: Path, bomb: Callable[[onnx.GraphProto], None]
) -> None:
    model = onnx.load_model_from_string((folder / "encoder.fp32.onnx").read_bytes())
    bomb(model.graph)
    replace(folder, "encoder.fp32.onnx", model.SerializeToString())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SERVE, str(folder)]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    growth, message = printed.split(maxsplit=1)
    assert int(growth) < MAX_GROWTH_KIB
    assert f"encoder.fp32.onnx {BOMBS[bomb]}" in message


def test_weights_in_another_file_are_not_read(folder: Path, tmp_path: Path) -> None:
    model = onnx.load_model_from_string((folder / "encoder.fp32.onnx").read_bytes())
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
    outside = tmp_path / "outside"
    os.mkfifo(outside)  # whoever opens it waits for ever
    onnx.external_data_helper.set_external_data(weight, "../../outside", offset=0)
    weight.ClearField("raw_data")
    replace(folder, "encoder.fp32.onnx", model.SerializeToString())
    assert "keeps weights in another file" in assert_refused(folder, "encoder.fp32.onnx")
