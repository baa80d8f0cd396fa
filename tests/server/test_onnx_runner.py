"""The runners on ONNX Runtime: slots, copies, growth, and graphs that do not fit their manifest.

The one for devices runs on the CPU here: it is the same but for the capture.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from dragoman_export.description import records
from dragoman_export.graphs import state_tensors
from dragoman_export.to_onnx import decode_step_onnx, encoder_onnx
from dragoman_model.config import ModelConfig
from dragoman_model.transformer import Transformer
from dragoman_server.bundle import Bundle
from dragoman_server.engine import onnx_sessions
from dragoman_server.engine.onnx_device_runner import DeviceRunner, state_bytes
from dragoman_server.engine.onnx_runner import OnnxRunner
from dragoman_server.engine.onnx_sessions import load_model
from dragoman_server.engine.runner import Extent, FloatArray, Runner, SlotCopy
from dragoman_server.errors import BundleError
from dragoman_server.languages import LanguageTokens
from dragoman_server.manifest import Dimensions, Gate, Graphs, Limits, Manifest, Tokenizers
from dragoman_server.special_ids import SpecialIds

VOCABULARY, MAX_TOKENS, MAX_ROWS = 30, 40, 20
SOURCE, OTHER = [5, 9, 14, 3], [21, 3]
GATE = Gate(True, 1, 1, 0.0, 0.0, 1e-4, 1.0, 1.0, 1.0, {})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "num_heads": 2, "d_ff": 24, "encoder_layers": 1, "decoder_layers": 2}
    vocabularies = {"source_vocabulary_size": VOCABULARY, "target_vocabulary_size": VOCABULARY}
    model = Transformer(ModelConfig(**sizes, **vocabularies, max_positions=MAX_TOKENS)).eval()
    files = {
        "encoder.onnx": encoder_onnx(model),
        "decode_step.onnx": decode_step_onnx(model, (0, 2)),
        "tokenizer.spm": b"not looked at",
    }
    manifest = Manifest(
        name="tiny",
        version="1",
        architecture="transformer",
        source_languages=("en",),
        target_languages=("de",),
        dimensions=Dimensions(
            **sizes,
            **vocabularies,
            head_dim=8,
            encoder_num_heads=sizes["num_heads"],
            encoder_d_ff=sizes["d_ff"],
        ),
        special_ids=SpecialIds(0, 1, 2, 3),
        language_tokens=LanguageTokens(),
        limits=Limits(MAX_TOKENS, MAX_TOKENS),
        tokenizers=Tokenizers("tokenizer.spm", "tokenizer.spm"),
        precisions={"fp32": Graphs("encoder.onnx", "decode_step.onnx", state_tensors(model))},
        gates={"fp32": GATE},
        provenance="",
        licence="",
        created_by={},
        files=records(files),
    )
    return write_bundle(tmp_path_factory.mktemp("bundle"), manifest, files)


def write_bundle(folder: Path, manifest: Manifest, files: dict[str, bytes]) -> Bundle:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "bundle.json").write_bytes(manifest.to_json())
    return Bundle.open(folder)


@pytest.fixture(params=[OnnxRunner, DeviceRunner])
def make_runner(bundle: Bundle, request: pytest.FixtureRequest) -> Callable[[], Runner]:
    model = load_model(bundle)
    return lambda: request.param(model, MAX_ROWS)


@pytest.fixture
def runner(make_runner: Callable[[], Runner]) -> Runner:
    return make_runner()


@pytest.fixture
def make_growing_runner(bundle: Bundle) -> Callable[[], OnnxRunner]:
    model = load_model(bundle)
    return lambda: OnnxRunner(model, MAX_ROWS)


def feed(runner: Runner, tokens: Sequence[Sequence[int]], start: int = 0) -> list[FloatArray]:
    """Feed `tokens[row]` to each row, one a step; the top log-probabilities of every step."""
    results = []
    for step, column in enumerate(zip(*tokens, strict=True), start=start):
        log_prob, _ = runner.step(np.array(column), np.full(len(column), step), 5)
        results.append(log_prob)
    return results


def assert_same(found: Sequence[FloatArray], expected: Sequence[FloatArray]) -> None:
    np.testing.assert_allclose(np.array(found), np.array(expected), atol=1e-5)


def test_limits_are_the_manifests(runner: Runner) -> None:
    assert dataclasses.astuple(runner.limits) == (MAX_ROWS, MAX_TOKENS, MAX_TOKENS, VOCABULARY)


def test_fewer_continuations_are_the_best_of_more(make_runner: Callable[[], Runner]) -> None:
    results = {}
    for top_k in (1, 4, VOCABULARY):
        runner = make_runner()
        runner.encode([SOURCE, OTHER], [[0], [1]])
        results[top_k] = runner.step(np.array([2, 2]), np.array([0, 0]), top_k)
    for top_k, (log_prob, ids) in results.items():
        assert log_prob.shape == ids.shape == (2, top_k)
        np.testing.assert_array_equal(ids, results[VOCABULARY][1][:, :top_k])
        np.testing.assert_array_equal(log_prob, results[VOCABULARY][0][:, :top_k])
    assert np.exp(results[VOCABULARY][0].astype(np.float64)).sum(axis=1) == pytest.approx(1.0, abs=1e-5)


def test_results_stay_as_they_are(runner: Runner) -> None:
    runner.encode([SOURCE], [[0]])
    kept, ids = runner.step(np.array([2]), np.array([0]), 5)
    before, ids_before = kept.copy(), ids.copy()
    runner.step(np.array([7]), np.array([1]), 5)
    np.testing.assert_array_equal(kept, before)
    np.testing.assert_array_equal(ids, ids_before)


def test_one_source_in_many_slots_is_the_same_in_each(runner: Runner) -> None:
    runner.encode([OTHER, SOURCE], [[3], [0, 2, 1]])
    for log_prob in feed(runner, [[2, 8, 9]] * 4):
        np.testing.assert_allclose(log_prob[1:3], log_prob[[0, 0]], atol=1e-6)
        assert not np.allclose(log_prob[3], log_prob[0], atol=1e-3)


def test_a_slot_is_as_new_after_encoding_into_it(make_runner: Callable[[], Runner]) -> None:
    used, fresh = make_runner(), make_runner()
    used.encode([[*range(4, 34 - 4), 3]], [[0]])
    feed(used, [[2, 8, 9, 10]])
    for runner in (used, fresh):
        runner.encode([SOURCE], [[0]])
    assert_same(feed(used, [[2, 11, 12]]), feed(fresh, [[2, 11, 12]]))


def test_a_copy_goes_on_as_its_source_would(make_runner: Callable[[], Runner]) -> None:
    runner, straight = make_runner(), make_runner()
    straight.encode([SOURCE], [[0]])
    expected = feed(straight, [[2, 8, 9, 10, 11]])
    runner.encode([SOURCE, OTHER], [[0], [1]])
    feed(runner, [[2, 8, 9], [2, 20, 21]])
    runner.copy([SlotCopy(0, 1, 0, 3, with_memory=True)])
    for log_prob, reference in zip(feed(runner, [[10, 11], [10, 11]], start=3), expected[3:], strict=True):
        np.testing.assert_allclose(log_prob, np.repeat(reference, 2, axis=0), atol=1e-5)


def test_a_copy_of_what_differs_is_enough(make_runner: Callable[[], Runner]) -> None:
    runner, straight = make_runner(), make_runner()
    straight.encode([SOURCE], [[0]])
    expected = feed(straight, [[2, 8, 9, 10]])
    runner.encode([SOURCE], [[0, 1]])
    feed(runner, [[2, 8, 9], [2, 8, 25]])
    runner.copy([SlotCopy(0, 1, 2, 3)])
    found = feed(runner, [[10], [10]], start=3)
    np.testing.assert_allclose(found[0], np.repeat(expected[3], 2, axis=0), atol=1e-5)


def test_a_copy_without_memory_keeps_the_targets_source(make_runner: Callable[[], Runner]) -> None:
    runner, straight = make_runner(), make_runner()
    straight.encode([OTHER], [[0]])
    expected = feed(straight, [[2, 8]])
    runner.encode([SOURCE, OTHER], [[0], [1]])
    runner.copy([SlotCopy(0, 1, 0, 5)])
    assert_same([found[1:] for found in feed(runner, [[2, 8], [2, 8]])], expected)


def test_growth_keeps_what_is_there(make_growing_runner: Callable[[], OnnxRunner]) -> None:
    growing, full = make_growing_runner(), make_growing_runner()
    full.reserve(Extent(MAX_ROWS, MAX_TOKENS, MAX_TOKENS))
    assert full._slab.extent != growing._slab.extent
    tokens = np.random.default_rng(0).integers(4, VOCABULARY, (MAX_ROWS, MAX_TOKENS)).tolist()
    long = [*tokens[0][:-1], 3]
    last: list[FloatArray] = []
    for runner in (growing, full):
        runner.encode([SOURCE], [[0]])
    assert_same(feed(growing, [tokens[0][:10]]), feed(full, [tokens[0][:10]]))
    for runner in (growing, full):
        runner.encode([long], [list(range(1, MAX_ROWS))])
        lengths = np.array([10, *[0] * (MAX_ROWS - 1)])
        for step in range(MAX_TOKENS - 10):
            result = runner.step(np.array([row[step] for row in tokens]), lengths + step, 5)
        last.append(result[0])
    assert_same(last[:1], last[1:])
    assert growing._slab.extent == full._slab.extent


def test_room_that_is_taken_elsewhere_keeps_what_is_in_use(
    make_growing_runner: Callable[[], OnnxRunner],
) -> None:
    straight = make_growing_runner()
    straight.encode([SOURCE], [[0]])
    expected = feed(straight, [[2, 8, 9, 10, 11, 12]])
    runner = make_growing_runner()
    runner._slab._max_bytes = runner._slab.bytes(Extent(MAX_ROWS, 16, 16))
    assert not runner.fits(Extent(MAX_ROWS, MAX_TOKENS, 16))
    assert runner.fits(Extent(4, MAX_TOKENS, MAX_TOKENS))
    runner.encode([SOURCE] * MAX_ROWS, [[row] for row in range(MAX_ROWS)])
    assert_same(
        feed(runner, [[2, 8, 9]] * MAX_ROWS), [np.repeat(row, MAX_ROWS, axis=0) for row in expected[:3]]
    )
    runner.reserve(Extent(4, MAX_TOKENS, MAX_TOKENS))
    assert runner._slab.extent.rows == 4
    assert_same(feed(runner, [[10, 11, 12]] * 4, 3), [np.repeat(row, 4, axis=0) for row in expected[3:]])


def test_rows_in_any_number_do_not_disturb_each_other(make_runner: Callable[[], Runner]) -> None:
    runner, alone = make_runner(), make_runner()
    alone.encode([SOURCE], [[0]])
    expected = feed(alone, [[2, 8, 9, 10, 11, 12]])
    runner.encode([SOURCE], [[0]])
    runner.encode([OTHER], [list(range(1, MAX_ROWS))])
    for step, rows in enumerate([1, 7, 20, 3, 20, 1]):
        tokens = np.full(rows, [2, 8, 9, 10, 11, 12][step])
        log_prob, _ = runner.step(tokens, np.full(rows, step), 5)
        np.testing.assert_allclose(log_prob[0], expected[step][0], atol=1e-5)


def test_a_device_takes_what_it_needs_at_once_or_says_so(bundle: Bundle) -> None:
    model = load_model(bundle)
    needed = state_bytes(model.state, Extent(MAX_ROWS, MAX_TOKENS, MAX_TOKENS))
    # A key and a value of 16 numbers, in two layers, of the history and of the source.
    assert needed == MAX_ROWS * MAX_TOKENS * 16 * 4 * 2 * 2 * 2
    assert DeviceRunner(model, MAX_ROWS, needed).fits(Extent(MAX_ROWS, MAX_TOKENS, MAX_TOKENS))
    with pytest.raises(ValueError, match=f"20 slots of the longest sentences take {needed} bytes of 1000"):
        DeviceRunner(model, MAX_ROWS, 1000)


def test_a_device_rounds_steps_up_to_few_shapes(bundle: Bundle) -> None:
    runner = DeviceRunner(load_model(bundle), MAX_ROWS, top_ks=(1, 8))
    runner.encode([SOURCE] * MAX_ROWS, [[row] for row in range(MAX_ROWS)])
    for rows, top_k in ((1, 1), (3, 1), (4, 1), (3, 2), (4, 8), (17, 1), (20, 1), (3, 9)):
        log_prob, token_id = runner.step(np.full(rows, 2), np.zeros(rows, np.int64), top_k)
        assert log_prob.shape == token_id.shape == (rows, top_k)
    assert sorted(runner._buckets) == [(1, 40, 1), (4, 40, 1), (4, 40, 8), (4, 40, 9), (20, 40, 1)]


def test_the_runtime_reports_to_nobody(bundle: Bundle, tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from dragoman_server.bundle import Bundle
from dragoman_server.engine.onnx_sessions import load_model
load_model(Bundle.open(Path({str(bundle.path)!r})))
"""
    # Nothing else of the environment: the runtime is silent of itself where a variable says that this is CI.
    environment = {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


def test_runners_share_one_model_on_several_threads(make_runner: Callable[[], Runner]) -> None:
    sources = [[4 + i, 9, 3] for i in range(4)]
    tokens = [[2, *range(4 + i, 24 + i, 1)][:20] for i in range(4)]
    expected, found = [], [[] for _ in sources]
    for source, row in zip(sources, tokens, strict=True):
        runner = make_runner()
        runner.encode([source], [[0]])
        expected.append(feed(runner, [row]))
    runners = [make_runner() for _ in sources]

    def work(i: int) -> None:
        runners[i].encode([sources[i]], [[0]])
        found[i] = feed(runners[i], [tokens[i]])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(found, expected, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize(
    ("sources", "slots"),
    [([[]], [[0]]), ([[4] * (MAX_TOKENS + 1)], [[0]]), ([SOURCE], [[MAX_ROWS]])],
    ids=["empty source", "long source", "no such slot"],
)
def test_sources_and_slots_beyond_the_limits_are_refused(
    runner: Runner, sources: list[list[int]], slots: list[list[int]]
) -> None:
    with pytest.raises(ValueError, match=r"at least one token|exceeds what the model"):
        runner.encode(sources, slots)


@pytest.mark.parametrize(("rows", "length"), [(MAX_ROWS + 1, 0), (1, MAX_TOKENS)])
def test_steps_beyond_the_limits_are_refused(runner: Runner, rows: int, length: int) -> None:
    with pytest.raises(ValueError, match="exceeds what the model can hold"):
        runner.step(np.full(rows, 2), np.full(rows, length), 5)


def altered(bundle: Bundle, folder: Path, files: dict[str, bytes], **fields: object) -> Bundle:
    contents = {name: bundle.read(name) for name in bundle.manifest.files} | files
    manifest = dataclasses.replace(bundle.manifest, files=records(contents), **fields)
    return write_bundle(folder, manifest, contents)


def test_an_unknown_precision_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="has no precision 'int8'; it has fp32"):
        load_model(bundle, "int8")


@pytest.mark.parametrize("gates", [{}, {"fp32": dataclasses.replace(GATE, passed=False)}])
def test_a_precision_without_a_passed_gate_is_refused(
    bundle: Bundle, tmp_path: Path, gates: dict[str, Gate]
) -> None:
    with pytest.raises(BundleError, match="the gate of fp32 has not passed"):
        load_model(altered(bundle, tmp_path, {}, gates=gates))


def test_a_file_that_is_no_graph_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"encoder\.onnx is no ONNX file"):
        load_model(altered(bundle, tmp_path, {"encoder.onnx": b"not a graph"}))


def test_a_graph_that_the_runtime_does_not_load_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    graph = onnx.load_from_string(bundle.read("encoder.onnx"))
    graph.graph.node[-1].op_type = "LayerNormalization"
    with pytest.raises(BundleError, match=r"encoder\.onnx is no graph that ONNX Runtime loads") as caught:
        load_model(altered(bundle, tmp_path, {"encoder.onnx": graph.SerializeToString()}))
    assert "\n" not in str(caught.value)


def test_a_graph_with_weights_in_another_file_is_refused(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = onnx.load_from_string(bundle.read("encoder.onnx"))
    weight = next(tensor for tensor in graph.graph.initializer if len(tensor.dims) == 2)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "outside.bin").write_bytes(weight.raw_data)
    onnx.external_data_helper.set_external_data(weight, "outside.bin", offset=0)
    weight.ClearField("raw_data")
    monkeypatch.chdir(tmp_path / "weights")
    (tmp_path / "bundle").mkdir()
    changed = altered(bundle, tmp_path / "bundle", {"encoder.onnx": graph.SerializeToString()})
    with pytest.raises(BundleError, match=r"encoder\.onnx keeps weights in another file"):
        load_model(changed)
    monkeypatch.setattr(onnx_sessions, "scan_graph", lambda content: None)
    with pytest.raises(BundleError, match=r"encoder\.onnx is no graph"):  # nor does the runtime look there
        load_model(changed)


def test_a_graph_in_the_wrong_place_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"encoder\.onnx: input cross_key_0"):
        load_model(altered(bundle, tmp_path, {"encoder.onnx": bundle.read("decode_step.onnx")}))


def test_state_of_another_shape_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    sizes = {"head": 2, "head_dim": 16}
    graphs = bundle.manifest.precisions["fp32"]
    state = tuple(dataclasses.replace(tensor, sizes=sizes) for tensor in graphs.state)
    precisions = {"fp32": dataclasses.replace(graphs, state=state)}
    with pytest.raises(BundleError, match=r"encoder\.onnx: output cross_key_0"):
        load_model(altered(bundle, tmp_path, {}, precisions=precisions))


def test_state_that_is_not_described_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    graphs = bundle.manifest.precisions["fp32"]
    precisions = {"fp32": dataclasses.replace(graphs, state=graphs.state[1:])}
    with pytest.raises(BundleError, match=r"decode_step\.onnx: input past_self_key_0"):
        load_model(altered(bundle, tmp_path, {}, precisions=precisions))
