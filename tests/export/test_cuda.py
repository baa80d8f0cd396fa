"""What only a GPU can show: the float16 graphs say there what they say elsewhere, captured and in company.

Skipped where there is no GPU, and says so; `make test-gpu` (DRAGOMAN_GPU=required) fails instead.
"""

from __future__ import annotations

import contextlib
import os
import queue
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import dragoman
from dragoman_export.calibration import calibration_sources
from dragoman_export.gate import check
from dragoman_export.options import ExportOptions
from dragoman_export.torch_reference import TorchReference
from dragoman_export.writer import export_checkpoint
from dragoman_model.checkpoint import load_checkpoint
from dragoman_model.reference import beam_search
from dragoman_server.bundle import Bundle
from dragoman_server.engine.engine import Engine
from dragoman_server.engine.messages import DecodingOptions, Event, Finished, Request
from dragoman_server.engine.onnx_cuda import cuda_device, require_cuda
from dragoman_server.engine.onnx_device_runner import DeviceRunner
from dragoman_server.engine.onnx_runner import OnnxRunner
from dragoman_server.engine.onnx_sessions import load_model
from dragoman_server.engine.runner import FloatArray, Runner
from dragoman_server.errors import DeviceError
from dragoman_server.special_ids import BOS_ID, EOS_ID

pytestmark = pytest.mark.gpu

SOURCES = [[5, 9, 3], [7, 3], [4, 8, 11, 12, 3], [6, 6, 6, 6, 6, 6, 3], [13, 3]]
FED = [2, 5, 9, 4, 7, 11, 5, 5, 6, 12, 4, 9]
ROUNDING = 0.02
"""Of a log-probability, between two orders of adding up in float16."""
BOUND = 12
REQUESTS = 10_000


@pytest.fixture(scope="module", autouse=True)
def gpu() -> str:
    """Its name."""
    try:
        require_cuda()
    except DeviceError as error:
        if os.environ.get("DRAGOMAN_GPU") == "required":
            pytest.fail(str(error))
        pytest.skip(str(error))
    return cuda_device()


@pytest.fixture(scope="module")
def half(gpu: str, plain: tuple[Path, Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("models") / "tiny" / "1"
    return export_checkpoint(plain[0], out, ExportOptions(precision=("fp16",)))


@pytest.fixture
def runner(half: Bundle) -> DeviceRunner:
    return DeviceRunner(load_model(half, "fp16", device="cuda"), 16, top_ks=(1, 8))


def steps(runner: Runner, sources: Sequence[Sequence[int]], top_k: int) -> FloatArray:
    """Log-probabilities `[steps, rows, top_k]` along `FED`."""
    runner.encode(sources, [[row] for row in range(len(sources))])
    rows = len(sources)
    return np.array(
        [runner.step(np.full(rows, token), np.full(rows, step), top_k)[0] for step, token in enumerate(FED)]
    )


def test_the_gate_passes(gpu: str, exported: tuple[Path, Bundle], tmp_path: Path, figures) -> None:
    folder, _ = exported
    bundle = export_checkpoint(folder, tmp_path / "tiny" / "1", ExportOptions(precision=("fp16",)))
    loaded = load_model(bundle, "fp16", device="cuda")
    checkpoint = load_checkpoint(folder)
    sources = calibration_sources(checkpoint, None)
    gate = check(
        TorchReference(checkpoint),
        lambda rows: DeviceRunner(loaded, rows),
        *(sources.gate, sources.sentence, "fp16"),
    )
    figures(f"gate of fp16 on {gpu}", "largest difference of a log-probability", gate.max_log_prob_difference)
    figures(f"gate of fp16 on {gpu}", "mean loss of torch's tokens", gate.mean_log_prob_loss)
    assert gate.passed


def test_steps_say_what_they_say_on_the_cpu(half: Bundle, runner: DeviceRunner) -> None:
    """Among them: attention over a source, whose new keys have length zero, for sources of any lengths."""
    on_cpu = steps(OnnxRunner(load_model(half, "fp16"), 16), SOURCES, 8)
    np.testing.assert_allclose(steps(runner, SOURCES, 8), on_cpu, atol=ROUNDING)


def test_replayed_steps_say_what_others_say(half: Bundle, runner: DeviceRunner) -> None:
    """Lengths change from step to step, and no graph may have kept those of its capture."""
    never_captured = DeviceRunner(load_model(half, "fp16", device="cuda"), 16, top_ks=(1,))
    np.testing.assert_array_equal(steps(runner, SOURCES, 8), steps(never_captured, SOURCES, 8))


def test_a_row_says_in_company_what_it_says_alone(runner: DeviceRunner, figures) -> None:
    together = steps(runner, SOURCES, 8)
    alone = np.concatenate([steps(runner, [source], 8) for source in SOURCES], axis=1)
    same = float((alone == together).all(axis=-1).mean())
    figures("rows alone and in company", "steps with the same bits", f"{same:.1%}")
    np.testing.assert_allclose(alone, together, atol=ROUNDING)


def test_beams_find_what_the_reference_finds(
    plain: tuple[Path, Bundle], runner: DeviceRunner, figures
) -> None:
    model, generator = load_checkpoint(plain[0]).model, np.random.default_rng(0)
    size = model.config.source_vocabulary_size
    sources = [(*generator.integers(4, size, 1 + number % 9).tolist(), EOS_ID) for number in range(40)]
    found = translated([runner], sources, beam_size=4)
    same = 0
    for source, event in zip(sources, found, strict=True):
        best = event.hypotheses[0]
        [expected, *_] = beam_search(model, source, beam_size=4, max_output_tokens=BOUND, alpha=0.6)
        assert best.score == pytest.approx(expected.score, abs=ROUNDING)
        same += best.tokens == expected.tokens
    figures("beam 4 beside torch in float32", "same tokens", f"{same} of {len(sources)}")


def translated(runners: Sequence[Runner], sources: Sequence[Sequence[int]], beam_size: int) -> list[Finished]:
    finished = queue.SimpleQueue[tuple[int, Event]]()
    with Engine(runners, max_queue=len(sources), bos_id=BOS_ID, eos_id=EOS_ID) as engine:
        for number, source in enumerate(sources):
            options = DecodingOptions(beam_size=beam_size, length_penalty=0.6, max_output_tokens=BOUND)
            engine.submit(
                Request(tuple(source), options, lambda event, number=number: finished.put((number, event)))
            )
        events = dict(finished.get(timeout=300) for _ in sources)
    assert all(isinstance(event, Finished) for event in events.values())
    return [events[number] for number in range(len(sources))]


def test_memory_is_flat(runner: DeviceRunner, figures) -> None:
    generator = np.random.default_rng(0)
    sources = [
        (*generator.integers(4, 12, 1 + number % 30).tolist(), EOS_ID) for number in range(REQUESTS // 2)
    ]
    translated([runner], sources, beam_size=1)
    device, host = torch.cuda.mem_get_info()[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    translated([runner], sources, beam_size=1)
    grown = (device - torch.cuda.mem_get_info()[0]) / 1e6
    figures("the second half of 10,000 requests", "memory of the device, grown by / MB", round(grown, 2))
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - host) * 1024 / 1e6
    figures("the second half of 10,000 requests", "peak memory of the process, grown by / MB", round(more, 2))
    assert grown < 1.0


@contextlib.contextmanager
def served(bundle: Bundle, tmp_path: Path) -> Iterator[str]:
    """The address of a server on the GPU."""
    ready = tmp_path / "ready"
    flags = ("--device", "cuda", "--models", str(bundle.path), "--port", "0", "--ready-file", str(ready))
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from dragoman.cli import main; sys.exit(main())",
            "serve",
            *flags,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline()
        yield ready.read_text().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_server_says_that_it_is_on_the_gpu(half: Bundle, tmp_path: Path) -> None:
    with served(half, tmp_path) as address, dragoman.Client(address) as client:
        model = client.model("tiny")
        assert (model.device, model.precision) == ("cuda", "fp16")
        assert client.translate(["the dog sees a cat"])[0].hypotheses
