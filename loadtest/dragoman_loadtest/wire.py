"""One request on the wire and what came back; the only module that knows gRPC.

The service's own client retries; here a refusal has to be seen, so that calls go out bare. Requests are
serialised before the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf.json_format import MessageToDict

from dragoman.options import TranslateOptions
from dragoman.v1 import translation_pb2 as pb
from dragoman_loadtest.options import Target
from dragoman_loadtest.samples import Code

__all__ = ["Outcome", "Wire", "serialised"]

_SERVICE = "/dragoman.v1.TranslationService"
_OPTIONS = [
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    # Each process has connections of its own, as different machines would.
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(slots=True)
class Outcome:
    """How a request ended; times on the clock of `time.monotonic`."""

    code: Code
    sent: float
    done: float
    first: float = float("nan")
    translation: pb.Translation | None = None
    gaps: list[float] = field(default_factory=list)
    error: str | None = None


def serialised(texts: Sequence[str], options: TranslateOptions) -> tuple[list[bytes], list[bytes]]:
    """Every text as the bytes of a `TranslateRequest` and of a `TranslateStreamRequest`."""
    unary, streaming = [], []
    decoding = pb.DecodingOptions(
        beam_size=options.beam_size,
        n_best=options.n_best,
        length_penalty=options.length_penalty,
        max_output_tokens=options.max_output_tokens,
    )
    route: dict[str, Any] = {
        "model": options.model,
        "source_language": options.source,
        "target_language": options.target,
        "options": decoding,
    }
    for text in texts:
        unary.append(pb.TranslateRequest(texts=[text], **route).SerializeToString())
        streaming.append(pb.TranslateStreamRequest(text=text, **route).SerializeToString())
    return unary, streaming


class Wire:
    """A connection of its own to the target; create it in the event loop that uses it.

    Raises:
        OSError: a certificate or token file cannot be read.
    """

    def __init__(self, target: Target) -> None:
        self._metadata: tuple[tuple[str, str], ...] = ()
        if target.token_file is not None:
            self._metadata = (("authorization", f"Bearer {target.token_file.read_text().strip()}"),)
        if target.tls:
            authority = None if target.tls_ca is None else target.tls_ca.read_bytes()
            credentials = grpc.ssl_channel_credentials(authority)
            self._channel = grpc.aio.secure_channel(target.endpoint, credentials, options=_OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(target.endpoint, options=_OPTIONS)
        self._unary: Any = self._channel.unary_unary(
            f"{_SERVICE}/Translate", response_deserializer=pb.TranslateResponse.FromString
        )
        self._stream: Any = self._channel.unary_stream(
            f"{_SERVICE}/TranslateStream", response_deserializer=pb.TranslateStreamResponse.FromString
        )
        self._get_model: Any = self._channel.unary_unary(
            f"{_SERVICE}/GetModel",
            request_serializer=pb.GetModelRequest.SerializeToString,
            response_deserializer=pb.GetModelResponse.FromString,
        )
        self._list_models: Any = self._channel.unary_unary(
            f"{_SERVICE}/ListModels",
            request_serializer=pb.ListModelsRequest.SerializeToString,
            response_deserializer=pb.ListModelsResponse.FromString,
        )

    async def models(self, timeout: float) -> list[dict[str, Any]]:
        """What the server says of all its models, as `GetModel` describes them.

        Raises:
            ConnectionError: it does not answer, or with an error.
        """
        common: dict[str, Any] = {"timeout": timeout, "metadata": self._metadata}
        try:
            listed = await self._list_models(pb.ListModelsRequest(), **common, wait_for_ready=True)
            found = [
                await self._get_model(pb.GetModelRequest(name=model.name), **common)
                for model in listed.models
            ]
        except grpc.RpcError as error:
            raise ConnectionError(f"{error.code().name}: {error.details()}") from error
        return [MessageToDict(message, preserving_proto_field_name=True) for message in found]

    async def unary(self, request: bytes, timeout: float, patience: float | None) -> Outcome:
        """Send a serialised `TranslateRequest`; cancel it after `patience` seconds."""
        sent = time.monotonic()
        call = self._unary(request, timeout=timeout, metadata=self._metadata)
        with _patience(call, patience) as lost:
            try:
                reply = await call
            except grpc.RpcError as error:
                return _failed(error, sent)
            except asyncio.CancelledError:
                if lost():
                    return Outcome(Code.CANCELLED, sent, time.monotonic())
                raise
            return Outcome(Code.OK, sent, time.monotonic(), translation=reply.translations[0])

    async def stream(
        self, request: bytes, timeout: float, patience: float | None, pause: float = 0.0
    ) -> Outcome:
        """Send a serialised `TranslateStreamRequest`, and pause before each message that is read."""
        sent = time.monotonic()
        call = self._stream(request, timeout=timeout, metadata=self._metadata)
        first, last, gaps, final = float("nan"), 0.0, [], None
        with _patience(call, patience) as lost:
            try:
                async for message in call:
                    now = time.monotonic()
                    if message.text_delta:
                        if last:
                            gaps.append(now - last)
                        else:
                            first = now
                        last = now
                    if message.HasField("final"):
                        final = message.final
                    if pause:
                        await asyncio.sleep(pause)
            except grpc.RpcError as error:
                return _failed(error, sent, first)
            except asyncio.CancelledError:
                if lost():
                    return Outcome(Code.CANCELLED, sent, time.monotonic(), first)
                raise
        if final is None:
            return Outcome(Code.INTERNAL, sent, time.monotonic(), first, error="INTERNAL: no final message")
        return Outcome(Code.OK, sent, time.monotonic(), first, final, gaps)

    async def close(self) -> None:
        """End the connection; calls in progress are cancelled."""
        await self._channel.close()


@contextlib.contextmanager
def _patience(call: grpc.aio.Call, seconds: float | None) -> Iterator[Callable[[], bool]]:
    """Cancel the call after so many seconds; yields what tells whether that has happened."""
    cancelled = False

    def cancel() -> None:
        nonlocal cancelled
        cancelled = True
        call.cancel()

    timer = None if seconds is None else asyncio.get_running_loop().call_later(seconds, cancel)
    try:
        yield lambda: cancelled
    finally:
        if timer is not None:
            timer.cancel()


def _failed(error: grpc.RpcError, sent: float, first: float = float("nan")) -> Outcome:
    code = Code(error.code().value[0])
    return Outcome(code, sent, time.monotonic(), first, error=f"{code.name}: {error.details()}"[:300])
