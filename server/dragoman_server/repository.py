"""The life of a model's versions: find, load, warm, compare with canaries, swap, drain, close.

A new version is loaded on a thread, beside the one that serves, and takes its place in the table of models
between two calls. The old one's calls end on it; then its engine is closed and its memory returned. Whatever
fails on the way leaves the table as it was.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from pathlib import Path

from dragoman_server.bundle import find_bundles
from dragoman_server.config import ServerConfig
from dragoman_server.errors import (
    BundleError,
    DragomanServerError,
    InvalidRequestError,
    ModelNotFoundError,
)
from dragoman_server.fingerprint import Fingerprint, fingerprint, fingerprints
from dragoman_server.loading import LoadedModel, check_canaries, load, warm_up
from dragoman_server.manifest import VERSION_PATTERN
from dragoman_server.memory import return_freed_memory
from dragoman_server.metrics import ServerMetrics
from dragoman_server.models import ModelDescription, ModelTable, listed, quoted
from dragoman_server.outages import Outages

__all__ = ["ModelRepository"]

_log = logging.getLogger(__name__)
_REMIND_SECONDS = 30.0


class ModelRepository:
    """Fills a table of models from a directory, and keeps it; used from one event loop.

    Operations on one model follow one another. They go on where whoever has asked for them no longer waits.

    Args:
        config: Names the directory, and says how models are loaded.
        metrics: Follow the engines that serve.
        models: The table, empty.
    """

    def __init__(self, config: ServerConfig, metrics: ServerMetrics, models: ModelTable) -> None:
        self._config = config
        self._metrics = metrics
        self._models = models
        self._loaded: dict[str, LoadedModel] = {}
        """What the table holds, with its engines."""
        self._outages = Outages(config.failed_batches)
        self._operations: set[asyncio.Task[ModelDescription]] = set()
        self._latest: dict[str, asyncio.Task[ModelDescription]] = {}
        """By model, the operation that the next one has to wait for."""
        self._loading: set[Future[LoadedModel]] = set()
        self._unloaded: set[str] = set()
        """What the watch leaves alone, since somebody has unloaded it."""
        self._dealt_with: dict[Path, Fingerprint] = {}
        """What has been tried, or is older than what serves: nothing to the watch until it changes."""

    @property
    def loading(self) -> bool:
        """Whether a thread loads a bundle, which nothing can stop."""
        return bool(self._loading)

    @property
    def stalled(self) -> bool:
        """Whether a worker of what is served stands still, as of the last `check_engines`."""
        return any(model.engine.stalled_workers for model in self._loaded.values())

    def check_engines(self) -> dict[str, bool]:
        """Have every engine give up what its workers do not come back with, and probe those that only fail.

        Returns:
            By model: whether all its workers come back, and its last probe, if any, has succeeded.
        """
        for model in self._loaded.values():
            model.engine.check()
            self._outages.look(model)
        return {
            name: not model.engine.stalled_workers and not self._outages.is_out(model)
            for name, model in self._loaded.items()
        }

    async def load_all(self) -> None:
        """Serve the newest sound version of every model.

        Raises:
            BundleError: there is no bundle, or a model without a sound version.
        """
        found = await asyncio.to_thread(find_bundles, self._config.models)
        self._dealt_with = await asyncio.to_thread(fingerprints, found)
        for name, versions in found.items():
            await self._load_newest(name, versions)

    async def load(self, name: str) -> ModelDescription:
        """Serve the newest version of the model `name`; where none is served, the newest that is sound.

        Returns:
            What is served now.

        Raises:
            ModelNotFoundError: the directory has no such model.
            BundleError: no version is sound, or none of those that are newer than the one served.
        """
        return await asyncio.shield(self._start(name, self._load(name)))

    async def roll_out(self, name: str, version: str) -> ModelDescription:
        """Serve that version of the model `name`, in place of the one served, if any.

        Returns:
            What is served now; the calls that the old version had begun have ended.

        Raises:
            InvalidRequestError: `version` is no positive integer.
            ModelNotFoundError: the directory has no such model, or not in that version.
            BundleError: it is not sound; what was served is served still.
        """
        return await asyncio.shield(self._start(name, self._roll_out(name, version)))

    async def unload(self, name: str) -> ModelDescription:
        """Serve the model `name` no longer, until it is loaded again; the watch does not bring it back.

        Returns:
            What was served; the calls that it had begun have ended.

        Raises:
            ModelNotFoundError: it is not served.
        """
        return await asyncio.shield(self._start(name, self._unload(name)))

    async def watch(self, seconds: float) -> None:
        """Look for new versions every `seconds`, for ever, and serve each that is newer than the one served.

        A version is tried once its files have been the same for two looks, so that it is not caught half
        copied; one that is refused is tried again when it has changed.
        """
        before = self._dealt_with
        while True:
            await asyncio.sleep(seconds)
            try:
                found = await asyncio.to_thread(find_bundles, self._config.models)
                now = await asyncio.to_thread(fingerprints, found)
            except (BundleError, OSError):
                continue  # The directory may be on its way, too.
            kept = {path: known for path, known in self._dealt_with.items() if path in now}
            self._dealt_with = kept
            for name, versions in found.items():
                self._consider(name, versions, before, now)
            before = now

    async def close(self) -> None:
        """Give up the operations in progress and close all engines; what a thread loads is not awaited."""
        await self._outages.close()
        for operation in self._operations:
            operation.cancel()
        await asyncio.gather(*self._operations, return_exceptions=True)
        for model in self._loaded.values():
            await asyncio.to_thread(model.engine.close)

    async def _versions(self, name: str) -> Mapping[str, Path]:
        """The versions in the directory, newest first. What is not listed there is not looked for."""
        found = await asyncio.to_thread(find_bundles, self._config.models)
        if name not in found:
            raise ModelNotFoundError(f"no model {quoted(name)} to load; there are {listed(found)}")
        return found[name]

    def _start(
        self, name: str, operation: Coroutine[None, None, ModelDescription]
    ) -> asyncio.Task[ModelDescription]:
        """Carry out one operation after the others on that model, and log why it fails."""
        previous = self._latest.get(name)

        async def operate() -> ModelDescription:
            if previous is not None:
                await asyncio.wait((previous,))
            try:
                description = await operation
            except Exception as error:
                unforeseen = None if isinstance(error, DragomanServerError) else error
                _log.error("model %s stays as it was: %s", quoted(name), error, exc_info=unforeseen)
                raise
            # With the operation's last reference to what it has replaced. Without this, a server under load
            # keeps several times the weights.
            await asyncio.to_thread(return_freed_memory)
            return description

        def ended(task: asyncio.Task[ModelDescription]) -> None:
            self._operations.discard(task)
            if self._latest.get(name) is task:
                del self._latest[name]
            operation.close()  # It may have been cancelled before its turn.
            if not task.cancelled():
                task.exception()  # Logged above, where nobody waits for it.

        self._latest[name] = task = asyncio.create_task(operate())
        self._operations.add(task)
        task.add_done_callback(ended)
        return task

    def _consider(
        self,
        name: str,
        versions: Mapping[str, Path],
        before: Mapping[Path, Fingerprint],
        now: Mapping[Path, Fingerprint],
    ) -> None:
        """Start to load what is new, whole, and newer than what serves."""
        if name in self._latest:
            return  # What serves is about to be another.
        served = self._served_version(name)
        due: dict[str, Path] = {}
        for version, path in versions.items():
            if self._dealt_with.get(path) == now[path]:
                continue
            if name in self._unloaded or int(version) <= served:
                self._dealt_with[path] = now[path]
            elif before.get(path) == now[path]:
                due[version] = path
        if due:
            self._start(name, self._load_newest(name, due))

    def _served_version(self, name: str) -> int:
        """0 where none is served."""
        loaded = self._loaded.get(name)
        return 0 if loaded is None else int(loaded.served.description.version)

    async def _load(self, name: str) -> ModelDescription:
        return await self._load_newest(name, await self._versions(name))

    async def _roll_out(self, name: str, version: str) -> ModelDescription:
        if not VERSION_PATTERN.fullmatch(version):
            raise InvalidRequestError("version", f"must be a positive integer, not {quoted(version)}")
        versions = await self._versions(name)
        if version not in versions:
            known = ", ".join(versions)
            raise ModelNotFoundError(f"model {quoted(name)} has no version {version}; there are {known}")
        return await self._replace(name, version, versions[version])

    async def _load_newest(self, name: str, versions: Mapping[str, Path]) -> ModelDescription:
        """Serve the first of `versions`, newest first, that is sound, and newer than the one served."""
        served = self._served_version(name)
        refused: dict[str, str] = {}
        for version, path in versions.items():
            if int(version) <= served:
                break
            try:
                description = await self._replace(name, version, path)
            except BundleError as error:
                refused[version] = str(error)
                continue
            for other, reason in refused.items():
                _log.warning("model %s: version %s is refused: %s", name, other, reason)
            return description
        if refused:
            raise BundleError("; ".join(refused.values()))
        return self._models.named(name).description

    async def _replace(self, name: str, version: str, path: Path) -> ModelDescription:
        started = time.monotonic()
        new = await self._prepared(name, version, path)
        # Between two awaits: no call sees half of it.
        old = self._loaded.pop(name, None)
        self._loaded[name] = new
        self._models.put(new.served)
        self._metrics.watch(new.served.description, new.engine.stats)
        self._unloaded.discard(name)
        _log.info("model %s: version %s is served, after %.1f s", name, version, time.monotonic() - started)
        if old is not None:
            await _retire(old)
        return new.served.description

    async def _unload(self, name: str) -> ModelDescription:
        description = self._models.remove(name).description
        self._metrics.unwatch(name)
        self._unloaded.add(name)
        _log.info("model %s: unloaded, version %s was served", name, description.version)
        await _retire(self._loaded.pop(name))
        return description

    async def _prepared(self, name: str, version: str, path: Path) -> LoadedModel:
        """A version that is warm and translates as it should.

        Raises:
            BundleError: it is not sound.
        """
        _log.info("loading %s", path)
        self._dealt_with[path] = await asyncio.to_thread(fingerprint, path)
        model = await self._on_a_thread(path, self._config_for(name))
        try:
            found = model.served.description
            if (found.name, found.version) != (name, version):
                held = f"{found.name}/{found.version}"
                raise BundleError(f"it is {held} by its manifest; name its directory so")
            await warm_up(model, self._config)
            await check_canaries(model)
        except BundleError as error:
            model.engine.close()
            raise BundleError(f"{path}: {error}") from error
        except BaseException:
            model.engine.close()
            raise
        return model

    def _config_for(self, name: str) -> ServerConfig:
        """As the version served divides the cores: which way is fastest cannot be tried on a busy machine."""
        served = self._loaded.get(name)
        if served is None or served.split is None:
            return self._config
        split = served.split
        return dataclasses.replace(self._config, workers=split.workers, threads=split.threads)

    async def _on_a_thread(self, path: Path, config: ServerConfig) -> LoadedModel:
        """Load the bundle at `path` on a thread that does not keep the process alive."""
        future: Future[LoadedModel] = Future()
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                future.set_result(load(path, config, self._metrics))
            except BaseException as error:
                future.set_exception(error)

        self._loading.add(future)
        future.add_done_callback(self._loading.discard)
        try:
            threading.Thread(target=run, name="dragoman-load", daemon=True).start()
        except RuntimeError as error:
            future.set_exception(error)
            raise OSError(f"cannot load {path}: no memory, or no process, is left for a thread") from error
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(_abandon)
            raise


async def _retire(old: LoadedModel) -> None:
    """Wait for the calls that hold a version which no call finds any more, then close its engine."""
    description = old.served.description
    try:
        while not await old.served.calls.drain(_REMIND_SECONDS):
            _log.warning(
                "model %s: %d calls still hold version %s",
                *(description.name, old.served.calls.active, description.version),
            )
            old.engine.check()
        await asyncio.to_thread(old.engine.close)
    except asyncio.CancelledError:
        # The server ends, after its last call. Closing may have begun on a thread: this waits for it.
        old.engine.close()
        raise


def _abandon(future: Future[LoadedModel]) -> None:
    if future.exception() is None:
        future.result().engine.close()
