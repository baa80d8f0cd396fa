"""The four methods of `dragoman.v1.TranslationService`."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc.aio

from dragoman.v1 import translation_pb2 as pb
from dragoman.v1 import translation_pb2_grpc
from dragoman_server.config import CallLimits
from dragoman_server.drain import CallCounter
from dragoman_server.errors import SlowReaderError
from dragoman_server.languages import Direction
from dragoman_server.models import ModelTable, ServedModel
from dragoman_server.service.callers import answered_by, caller_of, span_of_call
from dragoman_server.service.convert import (
    TranslationCall,
    model_response,
    model_summary,
    stream_call,
    translate_call,
    translation_message,
)
from dragoman_server.service.stream_writer import StreamWriter
from dragoman_server.translations import OnStage, TextTranslation

__all__ = ["TranslationService"]

_log = logging.getLogger(__name__)
_Context = grpc.aio.ServicerContext[Any, Any]


class TranslationService(translation_pb2_grpc.TranslationServiceServicer):
    """Turns messages into calls of the models' translators.

    Handlers raise; `Guard` turns what they raise into statuses.

    Args:
        models: What is served.
        limits: Bounds on one call.
        calls: Counts the translations in progress and refuses new ones when the server drains.
        log_texts: Whether texts go to the log.
    """

    def __init__(
        self, models: ModelTable, limits: CallLimits, calls: CallCounter, log_texts: bool = False
    ) -> None:
        self._log_texts = log_texts
        self._models = models
        self._limits = limits
        self._calls = calls

    async def Translate(  # noqa: N802 - the generated base class names it
        self, request: pb.TranslateRequest, context: _Context
    ) -> pb.TranslateResponse:
        """Translate texts; one reply."""
        with self._calls.call():
            call = translate_call(request, self._limits)
            with self._lease(call) as (model, direction):
                translations = await model.translator.translate(
                    *(call.texts, direction, call.options, _deadline(context), caller_of(context)),
                    on_stage=_on_stage(),
                )
                _note_translated(translations)
                return pb.TranslateResponse(
                    model=model.description.name,
                    version=model.description.version,
                    translations=[translation_message(translation) for translation in translations],
                )

    async def TranslateStream(  # noqa: N802
        self, request: pb.TranslateStreamRequest, context: _Context
    ) -> None:
        """Translate one text; send it as it grows."""
        writer = StreamWriter(context, self._limits.write_seconds)
        try:
            await self._stream(request, context, writer)
        except SlowReaderError:
            # What it had in the engine is free already.
            await writer.settle()
            raise

    async def _stream(
        self, request: pb.TranslateStreamRequest, context: _Context, writer: StreamWriter
    ) -> None:
        with self._calls.call():
            call = stream_call(request, self._limits)
            with self._lease(call) as (model, direction):
                await writer.write(
                    pb.TranslateStreamResponse(
                        model=model.description.name, version=model.description.version
                    )
                )
                [text] = call.texts
                updates = model.translator.stream(
                    *(text, direction, call.options, _deadline(context), caller_of(context)),
                    on_stage=_on_stage(),
                )
                # Closing frees the segments when the caller goes away between two writes.
                async with contextlib.aclosing(updates):
                    async for update in updates:
                        if isinstance(update, TextTranslation):
                            _note_translated([update])
                        await writer.write(_stream_message(update))

    @contextlib.contextmanager
    def _lease(self, call: TranslationCall) -> Iterator[tuple[ServedModel, Direction]]:
        """One version of the model that a call means, from here to its reply."""
        if self._log_texts:
            _log.info("texts: %s", json.dumps(call.texts), extra={"texts": call.texts})
        with self._models.lease(call.model, call.source_language, call.target_language) as leased:
            description = leased[0].description
            answered_by(description.name)
            if (span := span_of_call()) is not None:
                span.asked(description, len(call.texts))
            yield leased

    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: _Context
    ) -> pb.ListModelsResponse:
        """List what is served."""
        self._calls.require_ready()
        return pb.ListModelsResponse(models=[model_summary(model.description) for model in self._models])

    async def GetModel(  # noqa: N802
        self, request: pb.GetModelRequest, context: _Context
    ) -> pb.GetModelResponse:
        """Describe one model."""
        self._calls.require_ready()
        description = self._models.named(request.name).description
        answered_by(description.name)
        return model_response(description, self._limits)


def _stream_message(update: str | TextTranslation) -> pb.TranslateStreamResponse:
    if isinstance(update, str):
        return pb.TranslateStreamResponse(text_delta=update)
    return pb.TranslateStreamResponse(final=translation_message(update))


def _on_stage() -> OnStage | None:
    """Who is told of the stages of the call in progress, where anybody is."""
    span = span_of_call()
    return None if span is None else span.stage


def _note_translated(translations: Sequence[TextTranslation]) -> None:
    if (span := span_of_call()) is not None:
        span.translated(translations)


def _deadline(context: _Context) -> float | None:
    """The call's deadline on the clock of `time.monotonic`."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining
