"""A toy corpus, trained on, exported, served and translated: every part together, as a user runs them."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

import dragoman
from dragoman_model.checkpoint import Checkpoint, load_checkpoint
from dragoman_model.evaluation import score
from dragoman_model.reference import beam_search
from dragoman_model.toy import write_corpus
from dragoman_server.engine.messages import output_limit

DRAGOMAN = [sys.executable, "-c", "import sys; from dragoman.cli import main; sys.exit(main())"]
MIXED = [
    {"beam_size": 1},
    {"beam_size": 4},
    {"beam_size": 3, "n_best": 3},
    {"beam_size": 2, "length_penalty": 2.0},
]


def run(*words: object, text: str | None = None) -> str:
    """The output of a command that has to succeed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*DRAGOMAN, *map(str, words)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_corpus(folder, pairs=6000, seed=7)
    return folder


@pytest.fixture(scope="module")
def checkpoint(corpus: Path) -> Path:
    """About a minute of training: enough to end sentences, and to get many words right."""
    run(
        *("train", "--train", corpus / "train.en", corpus / "train.de"),
        *("--valid", corpus / "valid.en", corpus / "valid.de", "--source", "en", "--target", "de"),
        *("--out", corpus / "checkpoint", "--preset", "tiny", "--encoder-layers", 2, "--decoder-layers", 1),
        *("--dropout", 0.1, "--vocabulary-size", 900, "--batch-tokens", 2048, "--warmup-steps", 200),
        *(
            "--device",
            "cpu",
            "--validate-every",
            100,
            "--average",
            2,
            "--max-steps",
            700,
            "--learning-rate",
            0.7,
        ),
        *("--provenance", "a grammar", "--licence", "Apache-2.0"),
    )
    return corpus / "checkpoint"


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    out = checkpoint.parent / "models" / "toy" / "1"
    run("export", checkpoint, "--out", out, "--calibration", checkpoint.parent / "valid.en")
    return out


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[dict[str, str]]:
    """A served bundle; SIGTERM ends it with exit code 0."""
    words = ["serve", "--models", str(bundle.parent.parent), "--port", "0", "--metrics-port", "0", "--json"]
    process = subprocess.Popen([*DRAGOMAN, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def sentences(corpus: Path) -> list[str]:
    return (corpus / "test.en").read_text(encoding="utf-8").splitlines()[:80]


def test_a_server_without_room_for_the_longest_sentence_does_not_start(bundle: Path) -> None:
    words = ["serve", "--models", bundle.parent.parent, "--port", 0, "--cache-memory-mib", 1, "--workers", 1]
    done = subprocess.run([*DRAGOMAN, *map(str, words)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    [error] = [line for line in done.stderr.splitlines() if " INFO " not in line]
    assert "--cache-memory-mib 1 does not hold the longest sentence" in error


def reference(checkpoint: Checkpoint, text: str, beam_size: int) -> str:
    source = [*checkpoint.source_tokenizer.encode(text), 3]
    limit = output_limit(len(source))
    [best, *_] = beam_search(
        checkpoint.model, source, beam_size=beam_size, max_output_tokens=limit, alpha=0.6
    )
    return checkpoint.target_tokenizer.decode(best.tokens)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_the_endpoint_says_what_torch_says(
    beam_size: int, server: dict[str, str], checkpoint: Path, sentences: list[str]
) -> None:
    trained = load_checkpoint(checkpoint)
    with dragoman.Client(server["address"]) as client:
        for text in sentences:
            translation = client.translate(text, beam_size=beam_size, length_penalty=0.6)
            assert translation.text == reference(trained, text, beam_size)


def test_the_model_has_learnt_something(server: dict[str, str], corpus: Path, sentences: list[str]) -> None:
    expected = (corpus / "test.de").read_text(encoding="utf-8").splitlines()[: len(sentences)]
    with dragoman.Client(server["address"]) as client:
        outputs = [translation.text for translation in client.translate(sentences)]
    assert score(outputs, expected).bleu > 15
    assert score(outputs[1:] + outputs[:1], expected).bleu < 10


def test_company_changes_nothing(server: dict[str, str], sentences: list[str]) -> None:
    async def gather() -> None:
        async with dragoman.AsyncClient(server["address"]) as client:
            calls = [(text, MIXED[i % len(MIXED)]) for i, text in enumerate(sentences)]
            alone = [await client.translate(text, **options) for text, options in calls]
            together = await asyncio.gather(*(client.translate(text, **options) for text, options in calls))
        for one, other in zip(alone, together, strict=True):
            assert [h.text for h in one.hypotheses] == [h.text for h in other.hypotheses]
            assert [h.score for h in one.hypotheses] == pytest.approx(
                [h.score for h in other.hypotheses], abs=1e-4
            )

    asyncio.run(gather())


def metrics(server: dict[str, str]) -> dict[str, float]:
    with urlopen(f"http://{server['metrics_address']}/metrics", timeout=10) as response:
        lines = [line for line in response.read().decode().splitlines() if line and line[0] != "#"]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def held(server: dict[str, str]) -> dict[str, float]:
    kinds = ("dragoman_queue_depth", "dragoman_slots_in_use", "dragoman_calls_in_progress", "dragoman_tasks")
    found = {name: value for name, value in metrics(server).items() if name.partition("{")[0] in kinds}
    assert len(found) == len(kinds)
    return found


def test_nothing_is_left_of_requests_that_gave_up(server: dict[str, str], sentences: list[str]) -> None:
    async def storm() -> int:
        draw, gave_up = random.Random(1), 0
        async with dragoman.AsyncClient(server["address"]) as client:

            async def one(text: str) -> None:
                nonlocal gave_up
                kind, moment = draw.random(), draw.uniform(0.0005, 0.1)
                call = asyncio.ensure_future(client.translate(text, timeout=moment if kind < 0.25 else 60))
                if kind > 0.75:
                    asyncio.get_running_loop().call_later(moment, call.cancel)
                try:
                    await call
                except (asyncio.CancelledError, dragoman.DeadlineExceeded):
                    gave_up += 1

            await asyncio.gather(*(one(text) for text in sentences * 2))
        return gave_up

    with dragoman.Client(server["address"]) as client:
        before = client.translate(sentences[0])
        idle = held(server)
        assert asyncio.run(storm()) > 20
        assert client.translate(sentences[0]).hypotheses == before.hypotheses
    end = time.monotonic() + 5
    while more_than(idle, held(server)) and time.monotonic() < end:  # cancellations may still be on their way
        time.sleep(0.05)
    assert not more_than(idle, held(server))


def more_than(idle: dict[str, float], now: dict[str, float]) -> list[str]:
    """What the server holds more of; the call before `idle` may itself still have been on its way out."""
    return [name for name, value in now.items() if value > idle[name]]


def test_a_stream_adds_up_to_the_translation(server: dict[str, str], sentences: list[str]) -> None:
    text = f"{sentences[0]}  {sentences[1]}\n\n\t{sentences[2]}\n"
    with dragoman.Client(server["address"]) as client:
        for beam_size in (1, 4):
            stream = client.stream(text, beam_size=beam_size)
            deltas = list(stream)
            whole = client.translate(text, beam_size=beam_size)
            assert "".join(deltas) == stream.result().text == whole.text
            assert len(deltas) > 3
            assert whole.segments == 3
    assert whole.text.count("\n\n\t") == 1
    assert whole.text.endswith("\n")


def test_metrics_count_what_happened(server: dict[str, str], sentences: list[str]) -> None:
    before = metrics(server)
    with dragoman.Client(server["address"]) as client:
        translation = client.translate(sentences[0], beam_size=1)
    after = metrics(server)
    label = '{model="toy"}'
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    assert grown[f"dragoman_source_tokens_total{label}"] == translation.source_tokens + 1  # its end symbol
    assert grown[f"dragoman_output_tokens_total{label}"] == translation.hypotheses[0].output_tokens
    assert grown[f"dragoman_rows_per_step_sum{label}"] == translation.hypotheses[0].output_tokens + 1


def test_the_command_line_translates_lines_in_order(
    server: dict[str, str], sentences: list[str], corpus: Path, tmp_path: Path
) -> None:
    text = "\n".join(sentences) + "\n"
    lines = run("translate", "--endpoint", server["address"], text=text).splitlines()
    with dragoman.Client(server["address"]) as client:
        assert lines == [translation.text for translation in client.translate(sentences)]


@pytest.mark.parametrize("way", ["checkpoint", "bundle", "endpoint"])
def test_all_ways_to_evaluate_agree(
    way: str, server: dict[str, str], checkpoint: Path, bundle: Path, corpus: Path, tmp_path: Path
) -> None:
    where = {"checkpoint": checkpoint, "bundle": bundle, "endpoint": server["address"]}[way]
    for name in ("test.en", "test.de"):
        lines = (corpus / name).read_text(encoding="utf-8").splitlines()[:20]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = ("--source", tmp_path / "test.en", "--reference", tmp_path / "test.de")
    output = tmp_path / "output"
    scores = json.loads(run("evaluate", f"--{way}", where, *files, "--output", output, "--json"))
    outputs = output.read_text(encoding="utf-8").splitlines()
    with dragoman.Client(server["address"]) as client:
        sources = (tmp_path / "test.en").read_text(encoding="utf-8").splitlines()
        assert outputs == [translation.text for translation in client.translate(sources)]
    assert scores["sentences"] == 20
    assert "tok:13a" in scores["bleu_signature"]


def test_scores_reach_the_bundle(
    server: dict[str, str], checkpoint: Path, corpus: Path, tmp_path: Path
) -> None:
    files = ("--source", corpus / "valid.en", "--reference", corpus / "valid.de", "--beam-size", 1)
    measured = run("evaluate", "--endpoint", server["address"], *files, "--scores", tmp_path / "scores.json")
    out = tmp_path / "models" / "scored" / "2"
    run("export", checkpoint, "--out", out, "--scores", tmp_path / "scores.json")
    [bleu, chrf] = json.loads((out / "bundle.json").read_text())["scores"]
    assert (bleu["metric"], chrf["metric"], bleu["test_set"]) == ("BLEU", "chrF", "valid.de")
    assert f"BLEU {bleu['value']:.2f} ({bleu['signature']})" in measured
    assert "BLEU" in run("inspect", out)
