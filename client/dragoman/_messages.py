"""Requests from arguments, results from replies: what both clients share."""

from __future__ import annotations

from collections.abc import Sequence

from dragoman.errors import InvalidArgument, ServerError
from dragoman.options import TranslateOptions
from dragoman.results import FinishReason, Hypothesis, Limits, Model, ModelSummary, Timing, Translation
from dragoman.v1 import translation_pb2 as pb

__all__ = [
    "StreamReader",
    "parse_model",
    "parse_summary",
    "parse_translation",
    "parse_translations",
    "stream_request",
    "translate_request",
]

_FINISH_REASONS = {
    pb.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    pb.FINISH_REASON_REPETITION: FinishReason.REPETITION,
}


def translate_request(texts: Sequence[str], options: TranslateOptions) -> pb.TranslateRequest:
    """Build a `TranslateRequest`.

    Raises:
        InvalidArgument: a value is none that the protocol can carry.
    """
    try:
        return pb.TranslateRequest(
            model=options.model,
            source_language=options.source,
            target_language=options.target,
            texts=texts,
            options=_decoding_options(options),
        )
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"the request cannot be sent: {error}") from error


def stream_request(text: str, options: TranslateOptions) -> pb.TranslateStreamRequest:
    """Build a `TranslateStreamRequest`.

    Raises:
        InvalidArgument: a value is none that the protocol can carry.
    """
    try:
        return pb.TranslateStreamRequest(
            model=options.model,
            source_language=options.source,
            target_language=options.target,
            text=text,
            options=_decoding_options(options),
        )
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"the request cannot be sent: {error}") from error


def _decoding_options(options: TranslateOptions) -> pb.DecodingOptions:
    # For an optional field, `None` means not set.
    return pb.DecodingOptions(
        beam_size=options.beam_size,
        n_best=options.n_best,
        length_penalty=options.length_penalty,
        max_output_tokens=options.max_output_tokens,
    )


def parse_translations(response: pb.TranslateResponse) -> list[Translation]:
    """Read a `TranslateResponse`."""
    return [parse_translation(message, response.model, response.version) for message in response.translations]


def parse_translation(message: pb.Translation, model: str, version: str) -> Translation:
    """Read a `Translation` made by that model."""
    timing = message.timing
    return Translation(
        hypotheses=tuple(_hypothesis(hypothesis) for hypothesis in message.hypotheses),
        source_tokens=message.source_tokens,
        segments=message.segments,
        truncated=message.truncated,
        timing=Timing(
            timing.queue_seconds, timing.encode_seconds, timing.decode_seconds, timing.total_seconds
        ),
        model=model,
        version=version,
    )


def _hypothesis(message: pb.Hypothesis) -> Hypothesis:
    return Hypothesis(
        text=message.text,
        log_prob=message.log_prob,
        score=message.score,
        finish_reason=_FINISH_REASONS.get(message.finish_reason, FinishReason.STOP),
        output_tokens=message.output_tokens,
    )


def parse_summary(message: pb.ModelSummary) -> ModelSummary:
    """Read a `ModelSummary`."""
    return ModelSummary(
        message.name, message.version, tuple(message.source_languages), tuple(message.target_languages)
    )


def parse_model(message: pb.GetModelResponse) -> Model:
    """Read a `GetModelResponse`."""
    limits = message.limits
    return Model(
        summary=parse_summary(message.summary),
        architecture=message.architecture,
        dimensions=dict(message.dimensions),
        precision=message.precision,
        device=message.device,
        limits=Limits(
            max_texts=limits.max_texts,
            max_text_bytes=limits.max_text_bytes,
            max_source_tokens=limits.max_source_tokens,
            max_output_tokens=limits.max_output_tokens,
            max_beam_size=limits.max_beam_size,
            max_queue=limits.max_queue,
            max_call_tokens=limits.max_call_tokens,
            max_concurrent_calls=limits.max_concurrent_calls,
        ),
        manifest_sha256=message.manifest_sha256,
        provenance=message.provenance,
        licence=message.licence,
    )


class StreamReader:
    """Reads the messages of a stream, one after the other."""

    def __init__(self) -> None:
        self._model = self._version = ""
        self._result: Translation | None = None

    def read(self, message: pb.TranslateStreamResponse) -> str:
        """What the translation grew by with this message."""
        if message.model:
            self._model, self._version = message.model, message.version
        if message.HasField("final"):
            self._result = parse_translation(message.final, self._model, self._version)
        return message.text_delta

    @property
    def result(self) -> Translation:
        """The whole translation.

        Raises:
            ServerError: the stream ended without it.
        """
        if self._result is None:
            raise ServerError("the stream ended before its translation was complete", "INTERNAL")
        return self._result
