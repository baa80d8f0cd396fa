"""A translation server that does nothing but what its script says, in a process of its own.

python tests/loadtest/fake_server.py [--delay 0.02] [--pause 2 --pause-every 10] [--refuse-every 10] ...

It prints its address when it listens, and answers every text in capitals.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import selectors
import sys
import time
from pathlib import Path
from typing import Any

import grpc.aio

from dragoman.v1 import translation_pb2 as pb

SERVICE = "dragoman.v1.TranslationService"


class Script:
    """What happens to a request, by its number and the time of its arrival."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.number = 0
        self.origin = time.monotonic()
        self.free_at = 0.0
        self.held: list[float] = []

    async def play(self, text: str, context: Any) -> str:
        """Wait as long as the script says, and return the translation; or refuse."""
        options = self.options
        arrived = time.perf_counter()
        self.number += 1
        number = self.number
        if options.refuse_every and number % options.refuse_every == 0:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room")
        wait = options.delay
        if options.slow_every and number % options.slow_every == 0:
            wait += options.slow
        if options.pause_every:  # the server stands still at the end of every period
            into = (time.monotonic() - self.origin) % options.pause_every
            if into > options.pause_every - options.pause:
                wait += options.pause_every - into
        if options.serial:  # one request after the other
            self.free_at = max(self.free_at, time.monotonic()) + options.serial
            wait += self.free_at - time.monotonic()
        if wait:
            await asyncio.sleep(wait)
        self.held.append(time.perf_counter() - arrived)
        wrong = options.wrong_every and number % options.wrong_every == 0
        return text.upper() + (" WRONG" if wrong else "")


def translation(text: str) -> pb.Translation:
    """A message that says so."""
    words = len(text.split())
    return pb.Translation(
        hypotheses=[pb.Hypothesis(text=text, output_tokens=words + 1)],
        source_tokens=words,
        segments=1,
    )


def handlers(script: Script) -> grpc.GenericRpcHandler:
    """The service's methods."""
    fixed = pb.TranslateResponse(translations=[translation("DONE")]).SerializeToString()

    async def do_nothing(request: bytes, context: Any) -> bytes:
        return fixed

    async def translate(request: bytes, context: Any) -> bytes:
        texts = pb.TranslateRequest.FromString(request).texts
        done = [translation(await script.play(text, context)) for text in texts]
        return pb.TranslateResponse(model="fake", version="1", translations=done).SerializeToString()

    async def stream(request: bytes, context: Any) -> None:
        await context.write(pb.TranslateStreamResponse(model="fake", version="1").SerializeToString())
        done = await script.play(pb.TranslateStreamRequest.FromString(request).text, context)
        for i, word in enumerate(done.split(" ")):
            if i:
                await asyncio.sleep(script.options.gap)
            delta = (" " if i else "") + word
            await context.write(pb.TranslateStreamResponse(text_delta=delta).SerializeToString())
        await context.write(pb.TranslateStreamResponse(final=translation(done)).SerializeToString())

    async def list_models(request: bytes, context: Any) -> bytes:
        return pb.ListModelsResponse(models=[summary]).SerializeToString()

    async def get_model(request: bytes, context: Any) -> bytes:
        return pb.GetModelResponse(
            summary=summary, precision="none", device="none", manifest_sha256="fake"
        ).SerializeToString()

    summary = pb.ModelSummary(name="fake", version="1", source_languages=["en"], target_languages=["de"])
    unary = grpc.unary_unary_rpc_method_handler
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Translate": unary(do_nothing if script.options.nothing else translate),
            "TranslateStream": grpc.unary_stream_rpc_method_handler(stream),
            "ListModels": unary(list_models),
            "GetModel": unary(get_model),
        },
    )


class RequireToken(grpc.aio.ServerInterceptor):
    """Refuses calls without the token."""

    def __init__(self, token: str) -> None:
        self._expected = ("authorization", f"Bearer {token}")

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Let a call through, or put one in its place that is refused."""
        handler = await continuation(details)
        if self._expected in [tuple(pair) for pair in details.invocation_metadata]:
            return handler

        async def refuse(request: bytes, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")

        return grpc.unary_unary_rpc_method_handler(refuse)


async def main() -> None:
    """Listen until killed, or until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nothing", action="store_true", help="one fixed answer, as fast as can be")
    for flag in ("delay", "serial", "gap", "pause", "pause-every", "slow"):
        parser.add_argument(f"--{flag}", type=float, default=0.0, help="seconds")
    for flag in ("refuse-every", "slow-every", "wrong-every"):
        parser.add_argument(f"--{flag}", type=int, default=0, help="requests")
    parser.add_argument("--log", type=Path, help="file for the seconds that each text took by its clock")
    parser.add_argument("--token", default="")
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--key", type=Path)
    options = parser.parse_args()
    server = grpc.aio.server(interceptors=[RequireToken(options.token)] if options.token else [])
    script = Script(options)
    server.add_generic_rpc_handlers((handlers(script),))
    if options.certificate:
        pair = (options.key.read_bytes(), options.certificate.read_bytes())
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"127.0.0.1:{port}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)
    if options.log:
        options.log.write_text("".join(f"{seconds}\n" for seconds in script.held))


def event_loop() -> asyncio.AbstractEventLoop:
    """One that sleeps as long as it is told to; epoll would round up to a millisecond."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


if __name__ == "__main__":
    # It has to do what its script says: no pauses of its own, nor behind whoever else wants the CPU.
    gc.disable()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    with asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(main())
