"""Protobuf messages to dataclasses, with every check that needs no model, and back."""

from __future__ import annotations

from dataclasses import dataclass

from dragoman.v1 import translation_pb2 as pb
from dragoman_server.config import CallLimits
from dragoman_server.engine.messages import DecodingOptions, FinishReason
from dragoman_server.errors import InvalidRequestError
from dragoman_server.models import ModelDescription
from dragoman_server.translations import TextHypothesis, TextTranslation

__all__ = [
    "TranslationCall",
    "model_response",
    "model_summary",
    "stream_call",
    "translate_call",
    "translation_message",
]

_FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.REPETITION: pb.FINISH_REASON_REPETITION,
}


@dataclass(frozen=True, slots=True)
class TranslationCall:
    """What a caller asks for."""

    model: str
    source_language: str
    target_language: str
    texts: tuple[str, ...]
    options: DecodingOptions


def translate_call(request: pb.TranslateRequest, limits: CallLimits) -> TranslationCall:
    """Read a `TranslateRequest`.

    Raises:
        InvalidRequestError: a field is wrong.
    """
    if not request.texts:
        raise InvalidRequestError("texts", "must not be empty")
    if len(request.texts) > limits.max_texts:
        raise InvalidRequestError("texts", f"{len(request.texts)} are too many, at most {limits.max_texts}")
    for index, text in enumerate(request.texts):
        _require_size(f"texts[{index}]", text, limits)
    return TranslationCall(
        request.model,
        request.source_language,
        request.target_language,
        tuple(request.texts),
        _options(request.options, limits),
    )


def stream_call(request: pb.TranslateStreamRequest, limits: CallLimits) -> TranslationCall:
    """Read a `TranslateStreamRequest`.

    Raises:
        InvalidRequestError: a field is wrong.
    """
    _require_size("text", request.text, limits)
    return TranslationCall(
        request.model,
        request.source_language,
        request.target_language,
        (request.text,),
        _options(request.options, limits),
    )


def _require_size(field: str, text: str, limits: CallLimits) -> None:
    size = len(text.encode())
    if size > limits.max_text_bytes:
        raise InvalidRequestError(field, f"{size} bytes are too many, at most {limits.max_text_bytes}")


def _options(message: pb.DecodingOptions, limits: CallLimits) -> DecodingOptions:
    given = {descriptor.name: value for descriptor, value in message.ListFields()}
    given.setdefault("beam_size", min(DecodingOptions().beam_size, limits.max_beam_size))
    try:
        options = DecodingOptions(**given)
    except ValueError as error:
        field, _, description = str(error).partition(" ")
        raise InvalidRequestError(f"options.{field}", description) from error
    if options.beam_size > limits.max_beam_size:
        raise InvalidRequestError(
            "options.beam_size", f"must be at most {limits.max_beam_size}, not {options.beam_size}"
        )
    return options


def translation_message(translation: TextTranslation) -> pb.Translation:
    """Write a `Translation`."""
    return pb.Translation(
        hypotheses=[_hypothesis(hypothesis) for hypothesis in translation.hypotheses],
        source_tokens=translation.source_tokens,
        segments=translation.segments,
        truncated=translation.truncated,
        timing=pb.Timing(
            queue_seconds=translation.timing.queue,
            encode_seconds=translation.timing.encode,
            decode_seconds=translation.timing.decode,
            total_seconds=translation.total_seconds,
        ),
    )


def _hypothesis(hypothesis: TextHypothesis) -> pb.Hypothesis:
    return pb.Hypothesis(
        text=hypothesis.text,
        log_prob=hypothesis.log_prob,
        score=hypothesis.score,
        finish_reason=_FINISH_REASONS[hypothesis.finish_reason],
        output_tokens=hypothesis.output_tokens,
    )


def model_summary(description: ModelDescription) -> pb.ModelSummary:
    """Write a `ModelSummary`."""
    return pb.ModelSummary(
        name=description.name,
        version=description.version,
        source_languages=description.source_languages,
        target_languages=description.target_languages,
    )


def model_response(description: ModelDescription, limits: CallLimits) -> pb.GetModelResponse:
    """Write a `GetModelResponse`."""
    return pb.GetModelResponse(
        summary=model_summary(description),
        architecture=description.architecture,
        dimensions=description.dimensions,
        precision=description.precision,
        device=description.device,
        limits=pb.Limits(
            max_texts=limits.max_texts,
            max_text_bytes=limits.max_text_bytes,
            max_source_tokens=description.max_source_tokens,
            max_output_tokens=description.max_output_tokens,
            max_beam_size=limits.max_beam_size,
            max_queue=description.max_queue,
            max_call_tokens=limits.max_call_tokens,
            max_concurrent_calls=limits.max_concurrent_calls,
        ),
        manifest_sha256=description.manifest_sha256,
        provenance=description.provenance,
        licence=description.licence,
    )
