"""The life of a model's versions, on engines that echo."""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dragoman_server import repository as repository_module
from dragoman_server.config import ServerConfig
from dragoman_server.engine import DecodingOptions, Engine
from dragoman_server.errors import BundleError, InvalidRequestError, ModelNotFoundError
from dragoman_server.fingerprint import Fingerprint, fingerprints
from dragoman_server.languages import Direction
from dragoman_server.loading import LoadedModel
from dragoman_server.manifest import Canary
from dragoman_server.metrics import ServerMetrics
from dragoman_server.models import ModelTable, ServedModel
from dragoman_server.repository import ModelRepository

GREEDY = {"beam_size": 1, "length_penalty": 0.0}


class Fixture:
    """A repository of directories that hold nothing: what they hold is said here."""

    def __init__(self, root: Path, echo_runner: Any, model: Any) -> None:
        self.root = root
        self.bad: dict[str, str] = {}
        """Versions that are not loaded, and why."""
        self.canaries: tuple[Canary, ...] = ()
        self.waiting = threading.Event()
        self.may_load = threading.Event()
        self.may_load.set()
        self.engines: list[Engine] = []
        """In the order in which they were made."""
        self._echo_runner, self._model = echo_runner, model
        self.metrics = ServerMetrics()
        self.table = ModelTable()
        self.repository = ModelRepository(
            ServerConfig(models=root, max_beam_size=4, max_rows=8), self.metrics, self.table
        )

    def add(self, *versions: str, name: str = "echo") -> None:
        for version in versions:
            (self.root / name / version).mkdir(parents=True)

    def load(self, path: Path, config: ServerConfig, metrics: ServerMetrics) -> LoadedModel:
        self.waiting.set()
        assert self.may_load.wait(10)
        if path.name in self.bad:
            raise BundleError(f"{path}: {self.bad[path.name]}")
        engine = Engine(
            [self._echo_runner(seconds_per_step=0.001)],
            max_queue=50,
            bos_id=2,
            eos_id=3,
            observer=metrics.engine(path.parent.name),
        )
        self.engines.append(engine)
        served = self._model(engine, path.parent.name, version=path.name)
        return LoadedModel(served, engine, canaries=self.canaries)

    def served(self) -> list[tuple[str, str]]:
        return [(model.description.name, model.description.version) for model in self.table]

    def running(self) -> list[bool]:
        """Of every engine, whether its thread lives."""
        return [any(thread.is_alive() for thread in engine._threads) for engine in self.engines]

    def slots(self) -> float | None:
        return self.metrics.registry.get_sample_value("dragoman_slots", {"model": "echo"})


@pytest.fixture
def fixture(tmp_path: Path, echo_runner: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> Fixture:
    fixture = Fixture(tmp_path / "models", echo_runner, model)
    monkeypatch.setattr(repository_module, "load", fixture.load)
    return fixture


def run(fixture: Fixture, body: Callable[[], Awaitable[None]]) -> None:
    """Run `body` on an event loop, and close the repository."""

    async def main() -> None:
        try:
            await asyncio.wait_for(body(), 20)
        finally:
            fixture.may_load.set()
            await fixture.repository.close()
        assert not any(fixture.running())

    asyncio.run(main())


async def until(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it has not come to that")


async def translated(model: ServedModel, text: str) -> str:
    [translation] = await model.translator.translate(
        [text], Direction("en", "de"), DecodingOptions(beam_size=1), None
    )
    return translation.hypotheses[0].text


def test_the_newest_version_of_every_model_is_served(fixture: Fixture) -> None:
    fixture.add("1", "2", "10")
    fixture.add("5", name="other")

    async def body() -> None:
        await fixture.repository.load_all()
        assert fixture.served() == [("echo", "10"), ("other", "5")]
        assert len(fixture.engines) == 2
        assert fixture.slots() == 8

    run(fixture, body)


def test_at_the_start_an_older_version_stands_in(fixture: Fixture, caplog: pytest.LogCaptureFixture) -> None:
    fixture.add("1", "2", "3")
    fixture.bad = {"3": "no good", "2": "half"}

    async def body() -> None:
        await fixture.repository.load_all()
        assert fixture.served() == [("echo", "1")]
        warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(warnings) == 2
        assert "version 3 is refused" in warnings[0]
        assert "no good" in warnings[0]
        assert "half" in warnings[1]

    run(fixture, body)


def test_a_model_without_a_sound_version_is_an_error(fixture: Fixture) -> None:
    fixture.add("1", "2")
    fixture.bad = {"2": "no good", "1": "half"}

    async def body() -> None:
        with pytest.raises(BundleError, match=r"2: no good; .*1: half"):
            await fixture.repository.load_all()

    run(fixture, body)


def test_a_version_goes_when_its_last_call_has_ended(fixture: Fixture) -> None:
    fixture.add("1", "2")

    async def body() -> None:
        await fixture.repository.load_all()
        await fixture.repository.roll_out("echo", "1")
        assert fixture.running() == [False, True]
        with fixture.table.lease("", "en", "de") as (held, _):
            rollout = asyncio.create_task(fixture.repository.roll_out("echo", "2"))
            await until(lambda: fixture.served() == [("echo", "2")])
            with fixture.table.lease("", "en", "de") as (new, _):
                assert await translated(new, "new") == "new"
            await asyncio.sleep(0.05)
            assert fixture.running() == [False, True, True]
            assert held.description.version == "1"
            assert await translated(held, "held") == "held"
            assert not rollout.done()
        assert (await rollout).version == "2"
        assert fixture.running() == [False, False, True]

    run(fixture, body)


def test_nothing_holds_a_version_that_has_gone(fixture: Fixture) -> None:
    fixture.add("1", "2")

    async def body() -> None:
        await fixture.repository.load_all()
        gone = weakref.ref(fixture.engines.pop())
        await fixture.repository.roll_out("echo", "1")
        await asyncio.sleep(0)
        assert gone() is None
        assert fixture.slots() == 8

    run(fixture, body)


def test_a_refused_version_leaves_the_other_serving(
    fixture: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    fixture.add("1", "2", "3")
    fixture.bad = {"2": "no good"}
    wrong = Canary("abc", "xyz", -5.0, 0.1, **GREEDY)

    async def body() -> None:
        await fixture.repository.load_all()
        with pytest.raises(BundleError, match="2: no good"):
            await fixture.repository.roll_out("echo", "2")
        fixture.canaries = (wrong,)
        with pytest.raises(BundleError, match=r"1: canary 1 of 1 is translated otherwise .* differ by 4\.6"):
            await fixture.repository.roll_out("echo", "1")
        assert fixture.served() == [("echo", "3")]
        assert fixture.running() == [True, False]
        assert await translated(fixture.table.named("echo"), "still") == "still"
        errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(errors) == 2
        assert all("'echo' stays as it was" in error for error in errors)

    run(fixture, body)


@pytest.mark.parametrize(
    "canary",
    [
        Canary("abc", "abc", -99.0, 0.1, **GREEDY),
        Canary("abc", "abd", -0.45, 0.1, **GREEDY),
        Canary("abc", "another", -99.0, 0.0, beam_size=9, length_penalty=0.6),  # more than there are slots
    ],
)
def test_a_canary_is_equal_or_as_good(fixture: Fixture, canary: Canary) -> None:
    fixture.add("1")
    fixture.canaries = (canary,)

    async def body() -> None:
        await fixture.repository.load_all()
        assert fixture.served() == [("echo", "1")]

    run(fixture, body)


def test_operations_on_one_model_follow_one_another(fixture: Fixture) -> None:
    fixture.add("1", "2", "3")
    fixture.add("1", name="other")

    async def body() -> None:
        await fixture.repository.load_all()
        orders = [
            fixture.repository.roll_out("echo", "1"),
            fixture.repository.unload("echo"),
            fixture.repository.roll_out("echo", "2"),
            fixture.repository.load("echo"),
            fixture.repository.load("echo"),
        ]
        results = await asyncio.gather(*(asyncio.create_task(order) for order in orders))
        assert [result.version for result in results] == ["1", "1", "2", "3", "3"]
        assert fixture.served() == [("other", "1"), ("echo", "3")]
        assert sum(fixture.running()) == 2

    run(fixture, body)


def test_a_model_that_is_unloaded_is_not_found_until_it_is_loaded(fixture: Fixture) -> None:
    fixture.add("1")

    async def body() -> None:
        await fixture.repository.load_all()
        assert (await fixture.repository.unload("echo")).version == "1"
        assert fixture.served() == []
        assert fixture.slots() is None
        for order in (fixture.repository.unload("echo"), fixture.repository.unload("xx")):
            with pytest.raises(ModelNotFoundError):
                await order
        with pytest.raises(ModelNotFoundError):
            fixture.table.named("echo")
        assert (await fixture.repository.load("echo")).version == "1"
        assert fixture.slots() == 8

    run(fixture, body)


def test_a_load_takes_what_is_newer_and_says_why_not(fixture: Fixture) -> None:
    fixture.add("1", "2")

    async def body() -> None:
        await fixture.repository.load_all()
        fixture.add("3")
        fixture.bad = {"3": "no good"}
        with pytest.raises(BundleError, match="3: no good"):
            await fixture.repository.load("echo")
        assert fixture.served() == [("echo", "2")]
        assert len(fixture.engines) == 1
        fixture.bad = {}
        assert (await fixture.repository.load("echo")).version == "3"

    run(fixture, body)


@pytest.mark.parametrize(
    ("name", "version", "error", "words"),
    [
        ("xx", "1", ModelNotFoundError, "no model 'xx' to load; there are echo"),
        ("../echo", "1", ModelNotFoundError, "no model"),
        ("", "1", ModelNotFoundError, "no model"),
        ("echo", "7", ModelNotFoundError, "has no version 7; there are 1"),
        ("echo", "0", InvalidRequestError, "version: must be a positive integer"),
        ("echo", "../1", InvalidRequestError, "version: must be a positive integer"),
        ("echo", "", InvalidRequestError, "version: must be a positive integer"),
    ],
)
def test_what_is_not_in_the_directory_is_not_loaded(
    fixture: Fixture, name: str, version: str, error: type[Exception], words: str
) -> None:
    fixture.add("1")

    async def body() -> None:
        await fixture.repository.load_all()
        with pytest.raises(error, match=words):
            await fixture.repository.roll_out(name, version)
        assert len(fixture.engines) == 1

    run(fixture, body)


def test_a_directory_of_another_name_is_refused(
    fixture: Fixture, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixture.add("1")

    def mislabelled(path: Path, config: ServerConfig, metrics: ServerMetrics) -> LoadedModel:
        loaded = fixture.load(path, config, metrics)
        return LoadedModel(model(loaded.engine, "echo", version="2"), loaded.engine)

    async def body() -> None:
        monkeypatch.setattr(repository_module, "load", mislabelled)
        with pytest.raises(BundleError, match=r"echo/1: it is echo/2 by its manifest"):
            await fixture.repository.load_all()

    run(fixture, body)


def test_an_operation_outlives_whoever_asked_for_it(fixture: Fixture) -> None:
    fixture.add("1", "2")

    async def body() -> None:
        await fixture.repository.load_all()
        fixture.may_load.clear()
        fixture.waiting.clear()
        order = asyncio.create_task(fixture.repository.roll_out("echo", "1"))
        await until(fixture.waiting.is_set)
        assert fixture.repository.loading
        order.cancel()
        assert await translated(fixture.table.named("echo"), "meanwhile") == "meanwhile"
        fixture.may_load.set()
        await until(lambda: fixture.served() == [("echo", "1")])
        await until(lambda: fixture.running() == [False, True])
        assert not fixture.repository.loading

    run(fixture, body)


def test_closing_does_not_wait_for_a_load(fixture: Fixture) -> None:
    fixture.add("1", "2")

    async def main() -> None:
        await fixture.repository.load_all()
        fixture.may_load.clear()
        fixture.waiting.clear()
        orders = [
            asyncio.create_task(fixture.repository.roll_out("echo", "1")),
            asyncio.create_task(fixture.repository.unload("echo")),  # waits for its turn
        ]
        await until(fixture.waiting.is_set)
        await asyncio.wait_for(fixture.repository.close(), 5)
        assert fixture.repository.loading
        assert fixture.running() == [False]
        assert all(
            isinstance(error, asyncio.CancelledError)
            for error in await asyncio.gather(*orders, return_exceptions=True)
        )
        fixture.may_load.set()
        await until(lambda: not fixture.repository.loading)
        await until(lambda: fixture.running() == [False, False])  # what was loaded for nobody

    asyncio.run(main())


class Watched:
    """A watch in the background."""

    def __init__(self, fixture: Fixture) -> None:
        self._repository = fixture.repository

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._repository.watch(0.02))

    async def __aexit__(self, *exc_info: object) -> None:
        assert not self._task.done()
        self._task.cancel()


def test_the_watch_finds_new_versions_and_new_models(fixture: Fixture) -> None:
    fixture.add("2")

    async def body() -> None:
        await fixture.repository.load_all()
        async with Watched(fixture):
            fixture.add("1", "3")
            fixture.add("1", name="other")
            await until(lambda: sorted(fixture.served()) == [("echo", "3"), ("other", "1")])
            await until(lambda: len(fixture.engines) == 3)
            await asyncio.sleep(0.1)
            assert len(fixture.engines) == 3

    run(fixture, body)


def test_the_watch_tries_a_half_copied_version_again_when_it_has_changed(
    fixture: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    fixture.add("1")

    async def body() -> None:
        await fixture.repository.load_all()
        fixture.bad = {"2": "no good"}
        async with Watched(fixture):
            fixture.add("2")
            await until(lambda: "no good" in caplog.text)
            await asyncio.sleep(0.1)
            assert caplog.text.count("no good") == 1
            assert fixture.served() == [("echo", "1")]
            fixture.bad = {}
            (fixture.root / "echo" / "2" / "the_other_half").touch()
            await until(lambda: fixture.served() == [("echo", "2")])

    run(fixture, body)


def test_the_watch_does_not_undo_what_was_ordered(fixture: Fixture) -> None:
    fixture.add("1", "2", "3")
    fixture.add("1", name="other")

    async def body() -> None:
        await fixture.repository.load_all()
        async with Watched(fixture):
            await fixture.repository.roll_out("echo", "1")
            await fixture.repository.unload("other")
            await asyncio.sleep(0.1)
            assert fixture.served() == [("echo", "1")]
            fixture.add("4")
            fixture.add("2", name="other")
            await until(lambda: fixture.served() == [("echo", "4")])
            await asyncio.sleep(0.1)
            assert fixture.served() == [("echo", "4")]

    run(fixture, body)


def test_the_watch_outlives_the_directory(fixture: Fixture) -> None:
    fixture.add("1")

    async def body() -> None:
        await fixture.repository.load_all()
        aside = fixture.root.with_name("aside")
        async with Watched(fixture):
            fixture.root.rename(aside)
            await asyncio.sleep(0.06)
            assert fixture.served() == [("echo", "1")]
            aside.rename(fixture.root)
            fixture.add("2")
            await until(lambda: fixture.served() == [("echo", "2")])

    run(fixture, body)


def test_the_watch_waits_until_a_version_has_stopped_changing(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixture.add("1")
    looks = 0

    def growing(found: Any) -> dict[Path, Fingerprint]:
        """As if the new version grew until the fifth look."""
        nonlocal looks
        looks += 1
        seen = fingerprints(found)
        if looks <= 6:
            assert len(fixture.engines) == 1
        added = (("file", min(looks, 5), 0, 0),)
        return {path: known + added if path.name == "2" else known for path, known in seen.items()}

    async def body() -> None:
        await fixture.repository.load_all()
        monkeypatch.setattr(repository_module, "fingerprints", growing)
        async with Watched(fixture):
            fixture.add("2")
            await until(lambda: fixture.served() == [("echo", "2")])
        assert looks >= 6

    run(fixture, body)
