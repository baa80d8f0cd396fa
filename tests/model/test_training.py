"""Runs that are stopped, continued, changed and broken."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dragoman_model.augment import AugmentOptions
from dragoman_model.checkpoint import load_checkpoint
from dragoman_model.corpus import ParallelCorpus
from dragoman_model.dataset import DatasetOptions
from dragoman_model.options import ModelOptions, OptimisationOptions, RunOptions, TrainOptions
from dragoman_model.task import DivergenceError
from dragoman_model.training import Provenance, train_model
from dragoman_model.vocabulary import VocabularyOptions

OPTIONS = TrainOptions(
    ModelOptions(preset="tiny", encoder_layers=1, decoder_layers=1, d_model=32, d_ff=32),
    VocabularyOptions(vocabulary_size=320),
    DatasetOptions(),
    AugmentOptions(),
    OptimisationOptions(batch_tokens=256, warmup_steps=50, accumulate=2),
    RunOptions(max_steps=30, validate_every=10, average=2, device="cpu", patience=0),
)
PROVENANCE = Provenance("en", "de", "made up", "CC0")


def run(corpus: ParallelCorpus, out: Path, options: TrainOptions = OPTIONS) -> dict[str, object]:
    return train_model(corpus, corpus, out, options, PROVENANCE)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def assert_same_weights(first: Path, second: Path) -> None:
    left, right = weights(first), weights(second)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


@pytest.fixture(scope="module")
def uninterrupted(counting_corpus: ParallelCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    run(counting_corpus, out)
    return out


def test_a_run_leaves_a_checkpoint_with_its_report(uninterrupted: Path) -> None:
    checkpoint = load_checkpoint(uninterrupted)
    assert checkpoint.metadata["licence"] == "CC0"
    assert checkpoint.metadata["training"]["steps"] == 30
    assert checkpoint.metadata["training"]["averaged_steps"] == [20, 30]
    assert (uninterrupted / "curve.png").read_bytes().startswith(b"\x89PNG")
    log = (uninterrupted / "run" / "csv" / "version_0" / "metrics.csv").read_text()
    assert "valid/likelihood" in log
    assert any((uninterrupted / "run" / "tensorboard").iterdir())


def test_the_average_is_that_of_the_last_weights(uninterrupted: Path) -> None:
    saved = [load_file(file) for file in sorted((uninterrupted / "run" / "weights").iterdir())[-2:]]
    for name, tensor in weights(uninterrupted).items():
        torch.testing.assert_close(tensor, (saved[0][name] + saved[1][name]) / 2)


def test_a_run_in_two_parts_ends_at_the_same_weights(
    uninterrupted: Path, counting_corpus: ParallelCorpus, tmp_path: Path
) -> None:
    first_part = replace(OPTIONS, run=replace(OPTIONS.run, max_steps=20))
    run(counting_corpus, tmp_path, first_part)
    torch.rand(99)  # what else drew from the generator must not matter
    run(counting_corpus, tmp_path)
    assert_same_weights(uninterrupted, tmp_path)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_continues_to_the_same_weights(
    stop: signal.Signals, uninterrupted: Path, counting_corpus: ParallelCorpus, tmp_path: Path
) -> None:
    process = start_run(counting_corpus, tmp_path)
    wait_for(tmp_path / "run" / "resume.safetensors", process)
    process.send_signal(stop)
    assert process.wait(60) == (143 if stop is signal.SIGTERM else -9)
    assert not (tmp_path / "model.safetensors").exists()
    run(counting_corpus, tmp_path)
    assert_same_weights(uninterrupted, tmp_path)


def test_processes_that_are_told_at_once_stop_and_continue_to_the_same_weights(
    counting_corpus: ParallelCorpus, tmp_path: Path
) -> None:
    assert start_processes(counting_corpus, tmp_path / "whole").wait(120) == 0
    process = start_processes(counting_corpus, tmp_path / "stopped")
    wait_for(tmp_path / "stopped" / "run" / "resume.safetensors", process)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 143
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    assert start_processes(counting_corpus, tmp_path / "stopped").wait(120) == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")


def start_processes(corpus: ParallelCorpus, out: Path) -> subprocess.Popen[bytes]:
    """A run shared by two processes, in a group of their own."""
    words = ["train", "--train", *corpus.files, "--valid", *corpus.files, "--source", "en", "--target", "de"]
    words += ["--out", out, "--preset", "tiny", "--encoder-layers", 1, "--decoder-layers", 1]
    words += ["--d-model", 32, "--d-ff", 32, "--vocabulary-size", 320, "--batch-tokens", 128]
    words += ["--max-steps", 300, "--validate-every", 100, "--average", 2, "--patience", 0]
    words += ["--device", "cpu", "--devices", 2]
    command = Path(sys.executable).with_name("dragoman")  # a file: the first process starts it once more
    return subprocess.Popen(
        [command, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def start_run(corpus: ParallelCorpus, out: Path) -> subprocess.Popen[bytes]:
    """The same run in a process of its own, slowed down so that it is caught in the middle.

    As many threads as here: sums of floating-point numbers depend on how they are shared out.
    """
    source, target = corpus.files
    program = f"""
import importlib.util, time, torch
from pathlib import Path
torch.set_num_threads({torch.get_num_threads()})
from lightning.pytorch import Trainer
from dragoman_model.corpus import ParallelCorpus
from dragoman_model.task import TranslationTask
spec = importlib.util.spec_from_file_location("test_training", {__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
step = TranslationTask.training_step
def slow(self, batch, batch_idx):
    time.sleep(0.15)
    return step(self, batch, batch_idx)
TranslationTask.training_step = slow
module.run(ParallelCorpus((Path({str(source)!r}), Path({str(target)!r}))), Path({str(out)!r}))
"""
    return subprocess.Popen([sys.executable, "-c", program], env={**os.environ}, stderr=subprocess.DEVNULL)


def wait_for(file: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while not file.exists():
        assert process.poll() is None, "the run ended before it saved anything"
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.5)  # some steps beyond the save, which the continued run must repeat exactly


def test_other_options_are_refused_and_named(uninterrupted: Path, counting_corpus: ParallelCorpus) -> None:
    changed = replace(OPTIONS, optimisation=replace(OPTIONS.optimisation, warmup_steps=60))
    with pytest.raises(ValueError, match=r"other options \(optimisation\.warmup_steps\)"):
        run(counting_corpus, uninterrupted, changed)


def test_fine_tuning_begins_with_the_weights_and_tokenizers_it_is_given(
    uninterrupted: Path, counting_corpus: ParallelCorpus, tmp_path: Path
) -> None:
    initial = load_checkpoint(uninterrupted)
    still = replace(
        OPTIONS,
        vocabulary=VocabularyOptions(vocabulary_size=300),  # the checkpoint's has 320
        optimisation=replace(OPTIONS.optimisation, learning_rate=1e-9),
        run=replace(OPTIONS.run, max_steps=10),
    )
    train_model(counting_corpus, counting_corpus, tmp_path, still, PROVENANCE, initial)
    tuned = load_checkpoint(tmp_path)
    assert tuned.source_tokenizer.model == initial.source_tokenizer.model
    for name, tensor in initial.model.state_dict().items():
        torch.testing.assert_close(tuned.model.state_dict()[name], tensor, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=r"other options \(given\.initial\)"):
        run(counting_corpus, tmp_path, still)
    wider = replace(still, model=replace(OPTIONS.model, d_ff=64))
    with pytest.raises(ValueError, match="other dimensions"):
        train_model(counting_corpus, counting_corpus, tmp_path / "wider", wider, PROVENANCE, initial)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="asks for a device that is there")
def test_a_failed_start_does_not_bind_the_folder(counting_corpus: ParallelCorpus, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--device mps"):
        run(counting_corpus, tmp_path, replace(OPTIONS, run=replace(OPTIONS.run, device="mps")))
    assert run(counting_corpus, tmp_path)["steps"] == 30


def test_early_stopping(counting_corpus: ParallelCorpus, tmp_path: Path) -> None:
    stuck = replace(
        OPTIONS,
        optimisation=replace(OPTIONS.optimisation, learning_rate=1e-9, accumulate=1),
        run=replace(OPTIONS.run, max_steps=500, validate_every=5, patience=2),
    )
    assert run(counting_corpus, tmp_path, stuck)["steps"] < 500


def test_a_loss_that_is_no_number_stops_the_run_and_says_where(
    counting_corpus: ParallelCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dragoman_model import training

    built = training.Transformer

    def broken(config: object) -> torch.nn.Module:
        network = built(config)
        network.encoder.layers[0].feed_forward.inner.weight.data[3, 3] = float("nan")
        return network

    monkeypatch.setattr(training, "Transformer", broken)
    with pytest.raises(
        DivergenceError, match=r"step 0, first in encoder\.layers\.0\.feed_forward\.inner\.weight"
    ):
        run(counting_corpus, tmp_path)
