"""`dragoman serve`: load, warm, serve, drain.

start -> answer, health NOT_SERVING -> load and warm every model -> take calls, health SERVING -> SIGTERM or
SIGINT -> NOT_SERVING -> refuse new calls -> those in progress end -> stop. A second signal exits at once.
Meanwhile the repository loads, swaps and unloads what it is told to, or finds.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json as json_format
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

from cyclopts import Parameter

from dragoman_server.config import ServerConfig
from dragoman_server.engine.onnx_cuda import cuda_device, require_cuda
from dragoman_server.engine.threads import choose_threads
from dragoman_server.logs import set_up_logging
from dragoman_server.memory import keep_little_freed, return_when_at_rest
from dragoman_server.metrics import CallRecord, MetricsEndpoint, ServerMetrics
from dragoman_server.models import ModelTable
from dragoman_server.repository import ModelRepository
from dragoman_server.service.admin import AdminServer
from dragoman_server.service.doors import Doors
from dragoman_server.service.server import GrpcServer

if TYPE_CHECKING:
    from dragoman_server.service.tracing import Tracing

__all__ = ["serve"]

_log = logging.getLogger(__name__)
_DEFAULTS = ServerConfig()
_LEAST_ARENAS = 2
_CHECK_SECONDS = 0.5


def serve(*, config: Annotated[ServerConfig, Parameter(name="*")] = _DEFAULTS, json: bool = False) -> int:
    """Serve every model of a directory over gRPC until SIGTERM or SIGINT.

    Args:
        config: What to serve, where, and within which bounds.
        json: Print the line that says the server is ready as a JSON object.

    Returns:
        The exit code: 0 where every accepted call was finished, else 1.
    """
    set_up_logging(config.log_format)
    if config.device == "cuda":
        require_cuda()
        _log.info("networks run on cuda: %s", cuda_device())
    # More than can run at once do not help, and every one keeps its own share of what is freed.
    keep_little_freed(max(_LEAST_ARENAS, choose_threads()))
    code = asyncio.run(_serve(config, json))
    try:
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)  # a log that cannot be written is no failure
    return code


async def _serve(config: ServerConfig, json: bool) -> int:
    stop = _stop_signal()
    tracing = _tracing(config)
    metrics = ServerMetrics()
    models = ModelTable()
    repository = ModelRepository(config, metrics, models)

    def observe(call: CallRecord) -> None:
        metrics.observe_call(call)
        if config.log_calls:
            _log_call(call)

    # Before the models are loaded: an address that is taken should not take a minute to be noticed.
    doors = Doors(config, observe)
    server = GrpcServer(
        *(doors.translation, config, observe),
        log_texts=config.log_texts,
        health_listener=doors.health,
        tracing=tracing,
    )
    admin = None if doors.admin is None else AdminServer(doors.admin, observe)
    loop = asyncio.get_running_loop()
    metrics.watch_server(lambda: server.calls_in_progress, lambda: len(asyncio.all_tasks(loop)))
    async with contextlib.AsyncExitStack() as stack:
        if tracing is not None:
            stack.push_async_callback(tracing.close)
        write_ready_file = stack.enter_context(_ready_file(config.ready_file))
        metrics_address = _start_metrics(config, metrics, stack)
        stack.push_async_callback(repository.close)
        await server.start(models)
        try:
            if await _ended_before(stop, repository.load_all()):
                server.open()
                duties = (
                    _keep_health_true(server, repository),
                    return_when_at_rest(lambda: metrics.ended_calls, lambda: server.calls_in_progress),
                )
                async with _kept_up_to_date(config, repository, admin), _meanwhile(*duties):
                    addresses = {
                        "address": server.address,
                        "health_address": server.health_address,
                        "metrics_address": metrics_address,
                        "admin_address": admin.address if admin else None,
                    }
                    _announce(addresses, models, json)
                    write_ready_file(server.address)
                    await stop.wait()
        finally:
            code = await _stop(server, config)
    if repository.loading or repository.stalled:
        # A thread inside the runtime cannot be stopped, and the interpreter's end would break it off there.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    return code


def _log_call(call: CallRecord) -> None:
    fields = dataclasses.asdict(call)
    _log.info(
        "%(method)s by %(caller)s, model %(model)r: %(code)s after %(seconds).3f s", fields, extra=fields
    )


async def _ended_before(stop: asyncio.Event, work: Coroutine[None, None, None]) -> bool:
    """Do `work` until its end, or until `stop`; which of them came first."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if working.cancel():
        await asyncio.wait((working,))
        return False
    await working
    return not stop.is_set()


@contextlib.asynccontextmanager
async def _kept_up_to_date(
    config: ServerConfig, repository: ModelRepository, admin: AdminServer | None
) -> AsyncIterator[None]:
    """Watch the directory and take orders, where the flags say so, until the server stops."""
    watch = asyncio.create_task(repository.watch(config.watch_seconds)) if config.watch_seconds else None
    if admin is not None:
        await admin.start(repository)
    try:
        yield
    finally:
        if admin is not None:
            await admin.stop()
        if watch is not None:
            watch.cancel()
            await asyncio.wait((watch,))


async def _keep_health_true(server: GrpcServer, repository: ModelRepository) -> None:
    """Look after the engines, and say NOT_SERVING while one is of no use."""
    while True:
        server.set_models(repository.check_engines())
        await asyncio.sleep(_CHECK_SECONDS)


@contextlib.asynccontextmanager
async def _meanwhile(*duties: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Have what never ends done until the server stops."""
    tasks = [asyncio.create_task(duty) for duty in duties]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _stop(server: GrpcServer, config: ServerConfig) -> int:
    """Finish what was accepted; the exit code."""
    _log.info("stopping: no new calls, %d in progress", server.calls_in_progress)
    drained = await server.stop(config.drain_seconds, config.drain_delay_seconds)
    if not drained:
        _log.warning("calls were cancelled that took longer than %g s", config.drain_seconds)
    return 0 if drained else 1


def _stop_signal() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets; the second ends the process."""
    stop = asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    return stop


def _tracing(config: ServerConfig) -> Tracing | None:
    """What makes traces, where any are asked for.

    Raises:
        ValueError: what they need is not installed, or not set up well.
    """
    if config.traces is None:
        return None
    try:
        from dragoman_server.service.tracing import Tracing
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise ValueError(
            "--traces needs OpenTelemetry, which is not installed: pip install 'dragoman[tracing]'"
        ) from error
    return Tracing(config.traces, config.trace_ratio)


def _start_metrics(
    config: ServerConfig, metrics: ServerMetrics, stack: contextlib.AsyncExitStack
) -> str | None:
    if config.metrics_port is None:
        return None
    endpoint = MetricsEndpoint(metrics.registry, config.host, config.metrics_port)
    stack.enter_context(endpoint)
    return f"{config.host}:{endpoint.port}"


def _announce(addresses: dict[str, str | None], models: ModelTable, json: bool) -> None:
    if json:
        served = [{"name": model.description.name, "version": model.description.version} for model in models]
        line = json_format.dumps({**addresses, "models": served})
    else:
        names = ", ".join(f"{model.description.name} {model.description.version}" for model in models)
        line = f"dragoman: listening on {addresses['address']}, serving {names}"
        for what in ("health", "metrics", "admin"):
            address = addresses[f"{what}_address"]
            line += f", {what} on {address}" if address else ""
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except OSError as error:
        _log.error("the server is ready, but cannot write so to standard output: %s", error.strerror)
        _discard(sys.stdout)


def _discard(stream: TextIO) -> None:
    """Give up what cannot be written: the interpreter flushes once more at its end, and would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def _ready_file(path: Path | None) -> Iterator[Callable[[str], None]]:
    """Yields what writes the address to `path`, never half; before and after there is no such file.

    Raises:
        OSError: `path` cannot be written. Where that comes later, it is logged: the server serves.
    """
    if path is None:
        yield lambda address: None
        return
    partial = path.with_name(path.name + ".partial")

    def write(address: str) -> None:
        try:
            partial.write_text(address + "\n")
            partial.replace(path)
        except OSError as error:
            _log.error("the server is ready, but cannot write --ready-file %s: %s", path, error.strerror)

    try:
        # One may be left of a server that was killed.
        path.unlink(missing_ok=True)
        partial.touch()
    except OSError as error:
        raise OSError(f"cannot write --ready-file {path}: {error.strerror}") from error
    try:
        yield write
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            partial.unlink(missing_ok=True)
