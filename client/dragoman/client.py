"""The synchronous client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self, Unpack, overload

from dragoman._channel import CallArguments, Connection, typed_errors
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

__all__ = ["Client", "TranslationStream"]


class Client(Connection):
    """Talks to a Dragoman server, or to several in turns; thread-safe.

    Use as a context manager, or call `close`. Calls go to servers that say SERVING. Those that a server lost
    or could not take are tried again within their timeout, up to four times with growing pauses; streams
    until their first message. Every method raises the errors of `dragoman.errors`.

    Args:
        endpoint: HOST:PORT, or any other target that gRPC resolves; several HOST:PORT with commas between, or
            as a sequence. One name may have several addresses.
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
        super().__init__(endpoint, credentials)
        self._timeout = timeout
        self._stub = TranslationServiceStub(self._channel)  # type: ignore[no-untyped-call]

    @overload
    def translate(
        self, text: str, *, timeout: float | None = None, **options: Unpack[TranslateArguments]
    ) -> Translation: ...
    @overload
    def translate(
        self,
        text: list[str] | tuple[str, ...],
        *,
        timeout: float | None = None,
        **options: Unpack[TranslateArguments],
    ) -> list[Translation]: ...
    def translate(
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
            response = self._stub.Translate(request, **self._call(timeout))
        translations = parse_translations(response)
        return translations[0] if isinstance(text, str) else translations

    def stream(
        self, text: str, *, timeout: float | None = None, **options: Unpack[TranslateArguments]
    ) -> TranslationStream:
        """Translate one text and receive it as it grows; arguments are those of `translate`."""
        request = stream_request(text, TranslateOptions(**options))
        return TranslationStream(self._stub.TranslateStream(request, **self._call(timeout)))

    def models(self, *, timeout: float | None = None) -> list[ModelSummary]:
        """The models that the server holds."""
        with typed_errors():
            response = self._stub.ListModels(pb.ListModelsRequest(), **self._call(timeout))
        return [parse_summary(message) for message in response.models]

    def model(self, name: str, *, timeout: float | None = None) -> Model:
        """All that the server says of the model `name`."""
        with typed_errors():
            response = self._stub.GetModel(pb.GetModelRequest(name=name), **self._call(timeout))
        return parse_model(response)

    def wait_ready(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Wait until the server answers, which it does once its models are loaded and warm.

        Raises:
            DeadlineExceeded: it did not within `timeout` seconds.
        """
        with typed_errors():
            self._stub.ListModels(pb.ListModelsRequest(), **self._call(timeout), wait_for_ready=True)

    def _call(self, timeout: float | None) -> CallArguments:
        return {"timeout": self._timeout if timeout is None else timeout, "metadata": self._metadata}


class _StreamCall(Protocol):
    """What gRPC returns for a call whose reply is a stream."""

    def __next__(self) -> pb.TranslateStreamResponse: ...

    def cancel(self) -> bool: ...


class TranslationStream(Iterator[str]):
    """What a translation grows by; the pieces joined are `result().text`.

    Use as a context manager, or read to the end: leaving early cancels the call.
    """

    def __init__(self, call: _StreamCall) -> None:
        self._call = call
        self._reader = StreamReader()

    def __next__(self) -> str:
        while True:
            with typed_errors():
                message = next(self._call)
            if delta := self._reader.read(message):
                return delta

    def result(self) -> Translation:
        """The whole translation; reads what has not been read yet."""
        for _ in self:
            pass
        return self._reader.result

    def close(self) -> None:
        """Cancel the call, unless it has ended."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
