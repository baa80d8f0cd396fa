"""Whole texts through one model: split, encode, translate the segments at once, decode, join."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dragoman_server.engine.messages import DecodingOptions, Finished, FinishReason, Hypothesis, Timing
from dragoman_server.errors import EngineError, InvalidRequestError
from dragoman_server.in_flight import InFlight, SegmentEngine, submitted
from dragoman_server.languages import Direction, LanguageTokens
from dragoman_server.segments import Segment, fit, join, split
from dragoman_server.translations import OnStage, TextHypothesis, TextTranslation

__all__ = ["TextCodec", "Translator"]

# Splitting and encoding this many characters takes about a millisecond; more would hold up the event loop.
_LONG_TEXT = 4096
_ONE_PAIR = LanguageTokens()

_WORST_FIRST = (FinishReason.REPETITION, FinishReason.LENGTH)


class TextCodec(Protocol):
    """Text to ids and back; what `Tokenizer` does."""

    def encode(self, text: str) -> list[int]:
        """The ids of one sentence, without special symbols."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8 yield U+FFFD."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A segment and its source ids; without ids it has nothing to translate and is copied."""

    segment: Segment
    ids: tuple[int, ...]


class Translator:
    """Translates texts with one engine.

    Args:
        engine: Takes segments.
        source: Encodes the source language.
        target: Decodes the target language.
        eos_id: The end-of-sentence token, which every source ends with.
        max_source_tokens: Bound on a segment, `eos_id` included; longer sentences are split.
        max_segments: Bound on the segments of one call; the engine's queue must be able to hold them.
        max_call_tokens: Bound on the source tokens of one call.
        observe: Told of the stages of every call outside the engine, and of the seconds that each took.
        languages: How the network is told what to translate from and to.
    """

    def __init__(
        self,
        engine: SegmentEngine,
        source: TextCodec,
        target: TextCodec,
        *,
        eos_id: int,
        max_source_tokens: int,
        max_segments: int,
        max_call_tokens: int = sys.maxsize,
        observe: Callable[[str, float], object] = lambda stage, seconds: None,
        languages: LanguageTokens = _ONE_PAIR,
    ) -> None:
        self._engine = engine
        self._source = source
        self._target = target
        self._eos_id = eos_id
        self._max_source_tokens = max_source_tokens
        self._max_segments = max_segments
        self._max_call_tokens = max_call_tokens
        self._observe = observe
        self._languages = languages

    async def translate(
        self,
        texts: Sequence[str],
        direction: Direction,
        options: DecodingOptions,
        deadline: float | None,
        client: str = "",
        may_loop: bool = False,
        on_stage: OnStage | None = None,
    ) -> list[TextTranslation]:
        """Translate texts, all of them or none.

        Args:
            texts: In the source language.
            direction: Which languages; sentences are split by the rules of the source's.
            options: How to search.
            deadline: On the clock of `time.monotonic`; `None` for none.
            client: Who asks: clients take turns.
            may_loop: Whether translations are not cut where they repeat themselves.
            on_stage: Told of the call's stages (tokenise, queue, encode, decode, detokenise), of those in the
                engine once for every sentence.

        Raises:
            InvalidRequestError: the texts have too many sentences or tokens.
            BusyError: the engine cannot take all of them now, or not do them by the deadline.
            DeadlineError, ShuttingDownError, EngineError: as the engine says.
        """
        started = time.monotonic()
        prepared = await self._prepare(texts, direction, "texts", on_stage)
        flights = [
            self._flights(pieces, direction, options, deadline, client, may_loop=may_loop)
            for pieces in prepared
        ]
        with submitted(self._engine, [flight for text in flights for flight in text.values()]):
            return [
                await self._collect(pieces, text, started, on_stage)
                for pieces, text in zip(prepared, flights, strict=True)
            ]

    async def stream(
        self,
        text: str,
        direction: Direction,
        options: DecodingOptions,
        deadline: float | None,
        client: str = "",
        on_stage: OnStage | None = None,
    ) -> AsyncGenerator[str | TextTranslation, None]:
        """Translate one text; yield what its best translation grew by, last the whole result.

        Segments are translated at the same time and reported in order. Arguments and errors are those of
        `translate`.
        """
        started = time.monotonic()
        [pieces] = await self._prepare([text], direction, "text", on_stage)
        flights = self._flights(pieces, direction, options, deadline, client, wants_progress=True)
        with submitted(self._engine, list(flights.values())):
            for index, piece in enumerate(pieces):
                async for delta in self._deltas(piece, flights.get(index)):
                    if delta:
                        yield delta
            yield await self._collect(pieces, flights, started, on_stage)

    async def _prepare(
        self, texts: Sequence[str], direction: Direction, field: str, on_stage: OnStage | None
    ) -> list[list[_Piece]]:
        started = time.monotonic()
        if sum(map(len, texts)) <= _LONG_TEXT:
            prepared = self._pieces_of_all(texts, direction)
        else:
            prepared = await asyncio.to_thread(self._pieces_of_all, texts, direction)
        self._observe_stage("tokenise", started, on_stage)
        segments = sum(bool(piece.ids) for pieces in prepared for piece in pieces)
        if segments > self._max_segments:
            raise InvalidRequestError(
                field, f"{segments} sentences are too many for one call, which takes {self._max_segments}"
            )
        tokens = sum(len(piece.ids) for pieces in prepared for piece in pieces)
        if tokens > self._max_call_tokens:
            raise InvalidRequestError(
                field, f"{tokens} tokens are too many for one call, which takes {self._max_call_tokens}"
            )
        return prepared

    def _observe_stage(self, stage: str, started: float, on_stage: OnStage | None) -> None:
        ended = time.monotonic()
        self._observe(stage, ended - started)
        if on_stage is not None:
            on_stage(stage, started, ended)

    def _pieces_of_all(self, texts: Sequence[str], direction: Direction) -> list[list[_Piece]]:
        return [self._pieces(text, direction) for text in texts]

    def _pieces(self, text: str, direction: Direction) -> list[_Piece]:
        max_tokens = self._max_source_tokens - len(self._languages.prefix(direction)) - 1
        return [
            _Piece(piece, tuple(self._source.encode(piece.text)))
            for segment in split(text, direction.source)
            for piece in fit(segment, max_tokens, self._count)
        ]

    def _count(self, text: str) -> int:
        return len(self._source.encode(text))

    def _flights(
        self,
        pieces: Sequence[_Piece],
        direction: Direction,
        options: DecodingOptions,
        deadline: float | None,
        client: str,
        wants_progress: bool = False,
        may_loop: bool = False,
    ) -> dict[int, InFlight]:
        """A flight for every piece that has something to translate, by the piece's index."""
        prefix, first = self._languages.prefix(direction), self._languages.first(direction)
        return {
            index: InFlight(
                (*prefix, *piece.ids, self._eos_id),
                *(options, deadline, wants_progress, first, client, may_loop),
            )
            for index, piece in enumerate(pieces)
            if piece.ids
        }

    async def _deltas(self, piece: _Piece, flight: InFlight | None) -> AsyncIterator[str]:
        yield piece.segment.leading
        if flight is None:
            yield piece.segment.text
            return
        sent = ""
        async for tokens in flight.progress():
            # The bytes of a character not yet complete decode to U+FFFD.
            delta = _growth(sent, self._target.decode(tokens).rstrip("\ufffd"))
            sent += delta
            yield delta
        best = (await flight.result()).hypotheses[0]
        yield _growth(sent, self._target.decode(best.tokens))

    async def _collect(
        self,
        pieces: Sequence[_Piece],
        flights: dict[int, InFlight],
        started: float,
        on_stage: OnStage | None,
    ) -> TextTranslation:
        results = {index: await flight.result() for index, flight in flights.items()}
        wanted = max((len(result.hypotheses) for result in results.values()), default=1)
        timings = [result.timing for result in results.values()]
        ended = time.monotonic()
        hypotheses = tuple(self._join(pieces, results, rank) for rank in range(wanted))
        if on_stage is not None:
            for index, result in results.items():
                _tell_of_engine(on_stage, flights[index].request.arrived, result.timing)
        self._observe_stage("detokenise", ended, on_stage)
        return TextTranslation(
            hypotheses=hypotheses,
            source_tokens=sum(len(piece.ids) for piece in pieces),
            segments=len(results),
            timing=Timing(
                queue=sum(timing.queue for timing in timings),
                encode=sum(timing.encode for timing in timings),
                decode=sum(timing.decode for timing in timings),
            ),
            total_seconds=max((flight.ended_at for flight in flights.values()), default=started) - started,
        )

    def _join(self, pieces: Sequence[_Piece], results: dict[int, Finished], rank: int) -> TextHypothesis:
        """The hypothesis made of every segment's `rank`-th best, or its last where it has fewer."""
        chosen: dict[int, Hypothesis] = {
            index: result.hypotheses[min(rank, len(result.hypotheses) - 1)]
            for index, result in results.items()
        }
        texts = [
            self._target.decode(chosen[index].tokens) if index in chosen else piece.segment.text
            for index, piece in enumerate(pieces)
        ]
        reasons = {hypothesis.finish_reason for hypothesis in chosen.values()}
        return TextHypothesis(
            text=join([piece.segment for piece in pieces], texts),
            log_prob=sum((hypothesis.log_prob for hypothesis in chosen.values()), 0.0),
            score=sum((hypothesis.score for hypothesis in chosen.values()), 0.0),
            finish_reason=next((reason for reason in _WORST_FIRST if reason in reasons), FinishReason.STOP),
            output_tokens=sum(len(hypothesis.tokens) for hypothesis in chosen.values()),
        )


def _tell_of_engine(on_stage: OnStage, arrived: float, timing: Timing) -> None:
    """Of what a segment went through, one after the other from its arrival on."""
    ended = arrived
    for stage, seconds in (("queue", timing.queue), ("encode", timing.encode), ("decode", timing.decode)):
        started, ended = ended, ended + seconds
        on_stage(stage, started, ended)


def _growth(sent: str, text: str) -> str:
    """What `text` has beyond `sent`.

    Raises:
        EngineError: `text` does not begin with `sent`: progress was reported that did not last.
    """
    if not text.startswith(sent):
        raise EngineError("the translation no longer begins with what was streamed")
    return text[len(sent) :]
