"""The asyncio client: `Client`, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self, Unpack, overload

import grpc.aio

from dragoman._channel import CallArguments, channel_options, metadata_of, typed_errors
from dragoman._endpoints import listed_endpoints, target_of
from dragoman._messages import (
    StreamReader,
    parse_model,
    parse_summary,
    parse_translations,
    stream_request,
    translate_request,
)
from dragoman.credentials import Credentials
from dragoman.options import DEFAULT_ENDPOINT, DEFAULT_TIMEOUT, TranslateArguments, TranslateOptions
from dragoman.results import Model, ModelSummary, Translation
from dragoman.v1 import translation_pb2 as pb
from dragoman.v1.translation_pb2_grpc import TranslationServiceStub

__all__ = ["AsyncClient", "AsyncTranslationStream"]


class AsyncClient:
    """Talks to a Dragoman server, or to several in turns, from one event loop, in which it must be created.

    Use as an asynchronous context manager, or call `close`. Calls are tried again as those of `Client` are.
    Every method raises the errors of `dragoman.errors`.

    Args:
        endpoint: As for `Client`; looking up names among several may block.
        timeout: Seconds that a call may take where it does not say itself.
        credentials: By default what the environment says.

    Raises:
        ValueError: an endpoint is none, or a token would be sent in plaintext to another machine.
        OSError: a certificate cannot be read, or a name is not found.
    """

    def __init__(
        self,
        endpoint: str | Sequence[str] = DEFAULT_ENDPOINT,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        credentials: Credentials | None = None,
    ) -> None:
        self._timeout = timeout
        credentials = credentials or Credentials.from_environment()
        endpoints = listed_endpoints(endpoint)
        self._metadata = metadata_of(endpoints, credentials)
        options, secret = channel_options(endpoints, credentials), credentials.of_channel()
        if secret is None:
            self._channel = grpc.aio.insecure_channel(target_of(endpoints), options=options)
        else:
            self._channel = grpc.aio.secure_channel(target_of(endpoints), secret, options=options)
        self._stub = TranslationServiceStub(self._channel)  # type: ignore[no-untyped-call]

    @overload
    async def translate(
        self, text: str, *, timeout: float | None = None, **options: Unpack[TranslateArguments]
    ) -> Translation: ...
    @overload
    async def translate(
        self,
        text: list[str] | tuple[str, ...],
        *,
        timeout: float | None = None,
        **options: Unpack[TranslateArguments],
    ) -> list[Translation]: ...
    async def translate(
        self,
        text: str | list[str] | tuple[str, ...],
        *,
        timeout: float | None = None,
        **options: Unpack[TranslateArguments],
    ) -> Translation | list[Translation]:
        """Translate one text, or several in one call.

        Args:
            text: A text, or a list or tuple of them.
            timeout: Seconds that the call may take, retries included.
            **options: The fields of `TranslateOptions`.

        Returns:
            A translation for a text, a list of them, in order, for several.
        """
        texts = [text] if isinstance(text, str) else text
        request = translate_request(texts, TranslateOptions(**options))
        with typed_errors():
            response = await self._stub.Translate(request, **self._call(timeout))
        translations = parse_translations(response)
        return translations[0] if isinstance(text, str) else translations

    def stream(
        self, text: str, *, timeout: float | None = None, **options: Unpack[TranslateArguments]
    ) -> AsyncTranslationStream:
        """Translate one text and receive it as it grows; arguments are those of `translate`."""
        request = stream_request(text, TranslateOptions(**options))
        return AsyncTranslationStream(self._stub.TranslateStream(request, **self._call(timeout)))

    async def models(self, *, timeout: float | None = None) -> list[ModelSummary]:
        """The models that the server holds."""
        with typed_errors():
            response = await self._stub.ListModels(pb.ListModelsRequest(), **self._call(timeout))
        return [parse_summary(message) for message in response.models]

    async def model(self, name: str, *, timeout: float | None = None) -> Model:
        """All that the server says of the model `name`."""
        with typed_errors():
            response = await self._stub.GetModel(pb.GetModelRequest(name=name), **self._call(timeout))
        return parse_model(response)

    async def wait_ready(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Wait until the server answers, which it does once its models are loaded and warm.

        Raises:
            DeadlineExceeded: it did not within `timeout` seconds.
        """
        with typed_errors():
            await self._stub.ListModels(pb.ListModelsRequest(), **self._call(timeout), wait_for_ready=True)

    async def close(self) -> None:
        """Close the connections; calls in progress are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _call(self, timeout: float | None) -> CallArguments:
        return {"timeout": self._timeout if timeout is None else timeout, "metadata": self._metadata}


class AsyncTranslationStream(AsyncIterator[str]):
    """What a translation grows by; the pieces joined are `result().text`.

    Use as an asynchronous context manager, or read to the end: leaving early cancels the call.
    """

    def __init__(
        self, call: grpc.aio.UnaryStreamCall[pb.TranslateStreamRequest, pb.TranslateStreamResponse]
    ) -> None:
        self._call = call
        self._messages = aiter(call)
        self._reader = StreamReader()

    async def __anext__(self) -> str:
        while True:
            with typed_errors():
                message = await anext(self._messages)
            if delta := self._reader.read(message):
                return delta

    async def result(self) -> Translation:
        """The whole translation; reads what has not been read yet."""
        async for _ in self:
            pass
        return self._reader.result

    async def close(self) -> None:
        """Cancel the call, unless it has ended."""
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
