"""New versions of a model, rolled out on a real server: exported bundles, gRPC, the command line."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import sentencepiece
import torch

import dragoman
from dragoman import cli
from dragoman.v1 import translation_pb2 as pb
from dragoman.v1.translation_pb2_grpc import TranslationServiceStub
from dragoman_export.writer import export_checkpoint
from dragoman_model.checkpoint import Checkpoint
from dragoman_model.config import ModelConfig
from dragoman_model.transformer import Transformer
from dragoman_server.config import ServerConfig
from dragoman_server.manifest import sealed
from dragoman_server.metrics import ServerMetrics
from dragoman_server.models import ModelTable
from dragoman_server.repository import ModelRepository
from dragoman_server.service.admin import AdminServer
from dragoman_server.service.listening import Listener
from dragoman_server.service.server import GrpcServer
from dragoman_server.tokenizer import Tokenizer

WORDS = ("the", "a", "dog", "cat", "woman", "man", "who", "sees", "walks", "sleeps", "runs", "old")
TEXTS = [" ".join(random.Random(seed).choices(WORDS, k=1 + seed % 6)) for seed in range(12)]


def tokenizer() -> Tokenizer:
    generator, model = random.Random(1), io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([" ".join(generator.choices(WORDS, k=6)) for _ in range(100)]),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        minloglevel=2,
        num_threads=1,
    )
    return Tokenizer(model.getvalue())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny/1` and `tiny/2`, of other weights."""
    torch.set_num_threads(1)
    root, pieces = tmp_path_factory.mktemp("exported"), tokenizer()
    config = ModelConfig(
        source_vocabulary_size=pieces.vocabulary_size,
        target_vocabulary_size=pieces.vocabulary_size,
        max_positions=40,
        d_model=16,
        num_heads=2,
        d_ff=24,
        encoder_layers=1,
        decoder_layers=1,
    )
    for version in ("1", "2"):
        with torch.random.fork_rng():
            torch.manual_seed(int(version))
            model = Transformer(config).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn(parameter.shape), alpha=0.1)
        folder = root / "checkpoints" / version
        Checkpoint(model, pieces, pieces, "en", "de", {}).save(folder)
        export_checkpoint(folder, root / "tiny" / version)
    return root


class Server:
    """A repository, its server and its administration, on an event loop of their own."""

    def __init__(self, models: Path, watch_seconds: float) -> None:
        self._config = ServerConfig(
            models=models, workers=1, threads=1, max_rows=16, max_beam_size=4, watch_seconds=watch_seconds
        )
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        assert self._started.wait(20)
        self.client = dragoman.Client(self.address)
        self.admin = dragoman.AdminClient(self.admin_address)

    async def _run(self) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        models, self.metrics = ModelTable(), ServerMetrics()
        repository = ModelRepository(self._config, self.metrics, models)
        server = GrpcServer(Listener(), self._config, self.metrics.observe_call)
        admin = AdminServer(Listener(), self.metrics.observe_call)
        self.address, self.admin_address = server.address, admin.address
        await repository.load_all()
        await server.start(models)
        server.open()
        await admin.start(repository)
        watch = asyncio.create_task(repository.watch(self._config.watch_seconds or 1e9))
        self._started.set()
        await self._stopped.wait()
        watch.cancel()
        await admin.stop()
        await server.stop(0.0)
        await repository.close()

    def served(self) -> list[tuple[str, str]]:
        return [(model.name, model.version) for model in self.client.models()]

    def close(self) -> None:
        self.client.close()
        self.admin.close()
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def put(models: Path, exported: Path) -> Callable[[str], Path]:
    """Copies a version to the server's directory."""

    def put(version: str) -> Path:
        return Path(shutil.copytree(exported / "tiny" / version, models / "tiny" / version))

    return put


@pytest.fixture
def start(models: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(watch_seconds: float = 0.0) -> Server:
        servers.append(Server(models, watch_seconds))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_rollouts_fail_no_call_and_every_reply_is_one_versions(
    put: Callable[[str], Path], start: Callable[..., Server]
) -> None:
    put("1")
    put("2")
    server = start()
    expected: dict[tuple[str, str, int], str] = {}
    for version in ("1", "2"):
        server.admin.roll_out("tiny", version)
        for text in TEXTS:
            for beam_size in (1, 4):
                translation = server.client.translate(text, beam_size=beam_size)
                assert translation.version == version
                expected[version, text, beam_size] = translation.text
    assert [expected["1", text, 1] for text in TEXTS] != [expected["2", text, 1] for text in TEXTS]
    over = threading.Event()

    def call(seed: int) -> set[str]:
        chance, versions = random.Random(seed), set()
        # Without retries, which would hide a failed call.
        with grpc.insecure_channel(server.address, options=[("grpc.enable_retries", 0)]) as channel:
            stub = TranslationServiceStub(channel)
            while not over.is_set():
                text, beam_size = chance.choice(TEXTS), chance.choice((1, 4))
                options = pb.DecodingOptions(beam_size=beam_size)
                if chance.random() < 0.5:
                    reply = stub.Translate(pb.TranslateRequest(texts=[text], options=options))
                    version, found = reply.version, reply.translations[0].hypotheses[0].text
                else:
                    first, *rest = stub.TranslateStream(pb.TranslateStreamRequest(text=text, options=options))
                    version, found = first.version, "".join(message.text_delta for message in rest)
                assert found == expected[version, text, beam_size]
                versions.add(version)
        return versions

    with ThreadPoolExecutor(8) as pool:
        callers = [pool.submit(call, seed) for seed in range(8)]
        for version in ("1", "2", "1", "2", "1"):
            assert server.admin.roll_out("tiny", version).version == version
        over.set()
        assert set().union(*(caller.result(20) for caller in callers)) == {"1", "2"}
    assert server.served() == [("tiny", "1")]


def edit(manifest: Path, change: Callable[[Any], object]) -> None:
    document = json.loads(manifest.read_bytes())
    del document["sha256"]
    change(document)
    manifest.write_bytes(sealed(document))


def flip(bundle: Path) -> None:
    file = bundle / "decode_step.fp32.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def other_translations(manifest: Any) -> None:
    for canary in manifest["gates"]["fp32"]["canaries"]:
        canary["translation"] += "!"
        canary["score"] += 1.0


def unpassed(manifest: Any) -> None:
    manifest["gates"]["fp32"]["passed"] = False


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped byte": (flip, "decode_step.fp32.onnx has been altered"),
    "missing file": (lambda bundle: (bundle / "tokenizer.spm").unlink(), "tokenizer.spm is missing"),
    "extra file": (lambda bundle: (bundle / "extra").touch(), "extra does not belong to the bundle"),
    "canary": (lambda bundle: edit(bundle / "bundle.json", other_translations), "canary 1 of 5"),
    "gate": (lambda bundle: edit(bundle / "bundle.json", unpassed), "the gate of fp32 has not passed"),
    "schema": (
        lambda bundle: edit(bundle / "bundle.json", lambda manifest: manifest.update(schema=5)),
        "schema 5 is unknown",
    ),
    "no manifest": (lambda bundle: (bundle / "bundle.json").unlink(), "bundle.json cannot be opened"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_version_is_refused_and_the_reason_is_told(
    kind: str, put: Callable[[str], Path], start: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    put("1")
    server = start()
    before = server.client.translate(TEXTS[3])
    break_, words = BROKEN[kind]
    break_(put("2"))
    for order in (lambda: server.admin.roll_out("tiny", "2"), lambda: server.admin.load("tiny")):
        caplog.clear()
        with pytest.raises(dragoman.errors.ServerError, match=words) as caught:
            order()
        assert caught.value.code == "FAILED_PRECONDITION"
        [line] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert words in line
    after = server.client.translate(TEXTS[3])
    assert (after.version, after.hypotheses) == ("1", before.hypotheses)


def test_a_broken_newest_version_does_not_keep_a_server_from_starting(
    put: Callable[[str], Path], start: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    put("1")
    flip(put("2"))
    assert start().served() == [("tiny", "1")]
    assert "version 2 is refused" in caplog.text
    assert "decode_step.fp32.onnx has been altered" in caplog.text


def test_the_watch_serves_a_version_once_it_is_whole(
    put: Callable[[str], Path], start: Callable[..., Server], models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put("1")
    server = start(watch_seconds=0.05)
    copy = put("2")
    held_back = (copy / "tokenizer.spm").rename(models / "held back")
    wait_until(lambda: "tokenizer.spm is missing" in caplog.text)
    assert server.served() == [("tiny", "1")]
    held_back.rename(copy / "tokenizer.spm")
    wait_until(lambda: server.served() == [("tiny", "2")])


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(400):
        if condition():
            return
        pause.wait(0.025)
    raise AssertionError("it has not come to that within ten seconds")


def test_orders_have_statuses(put: Callable[[str], Path], start: Callable[..., Server]) -> None:
    put("1")
    server = start()
    for order, kind, words in (
        (
            lambda: server.admin.roll_out("xx", "1"),
            dragoman.NotFound,
            "no model 'xx' to load; there are tiny",
        ),
        (lambda: server.admin.load("xx"), dragoman.NotFound, "no model 'xx' to load"),
        (lambda: server.admin.unload("xx"), dragoman.NotFound, "no model 'xx'; there are tiny"),
        (lambda: server.admin.roll_out("tiny", "2"), dragoman.NotFound, "has no version 2; there are 1"),
        (lambda: server.admin.roll_out("tiny", "new"), dragoman.InvalidArgument, "not 'new'"),
        (lambda: server.admin.roll_out("../tiny", "1"), dragoman.NotFound, "no model"),
    ):
        with pytest.raises(kind, match=words):
            order()
    assert server.served() == [("tiny", "1")]


def test_translations_do_not_open_the_administration(
    put: Callable[[str], Path], start: Callable[..., Server]
) -> None:
    put("1")
    server = start()
    with dragoman.AdminClient(server.address) as admin, pytest.raises(dragoman.errors.ServerError) as caught:
        admin.unload("tiny")
    assert caught.value.code == "UNIMPLEMENTED"


def test_the_command_line(
    put: Callable[[str], Path], start: Callable[..., Server], capsys: pytest.CaptureFixture[str]
) -> None:
    put("1")
    server = start()
    put("2")
    endpoint, admin = ("--endpoint", server.address), ("--admin", server.admin_address)

    def run(*words: str) -> str:
        assert cli.main(["models", *words]) == 0
        return capsys.readouterr().out

    assert run("list", *endpoint) == "tiny 1\ten to de\n"
    assert run("rollout", "tiny", "2", *admin) == "serving tiny 2\n"
    assert run("unload", "tiny", *admin) == "unloaded tiny 2\n"
    assert run("list", *endpoint) == ""
    assert json.loads(run("load", "tiny", *admin, "--json"))["version"] == "2"
    assert [model["version"] for model in json.loads(run("list", *endpoint, "--json"))] == ["2"]
    assert cli.main(["models", "rollout", "tiny", "3", *admin]) == 2
    assert capsys.readouterr().err == "dragoman: error: model 'tiny' has no version 3; there are 2, 1\n"
