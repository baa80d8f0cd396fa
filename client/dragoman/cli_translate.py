"""`dragoman translate`: a text, or standard input line by line, through a running server."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json as json_format
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from dragoman.client import Client
from dragoman.credentials import Credentials
from dragoman.errors import InvalidArgument, Unavailable
from dragoman.options import DEFAULT_ENDPOINT, DEFAULT_TIMEOUT, TranslateOptions
from dragoman.results import Translation

__all__ = ["translate"]

_LINES_PER_CALL = 32
_CALLS_IN_FLIGHT = 4
_DEFAULTS = TranslateOptions()


def translate(
    text: str | None = None,
    /,
    *,
    options: Annotated[TranslateOptions, Parameter(name="*")] = _DEFAULTS,
    endpoint: str = DEFAULT_ENDPOINT,
    timeout: float = DEFAULT_TIMEOUT,
    token_file: Path | None = None,
    json: bool = False,
) -> None:
    """Translate text with a running server.

    Args:
        text: The text; without it, every line of standard input is translated on its own.
        options: Model, languages and search.
        endpoint: HOST:PORT of the server.
        timeout: Seconds that one call may take, retries included.
        token_file: File with the token to send; by default DRAGOMAN_TOKEN says it.
        json: Print one JSON object per text, with all hypotheses, scores, counts and times.
    """
    cut: list[int] = []
    # The client is closed before the pool is waited for, so that an error ends the calls in flight.
    credentials = Credentials.from_environment(token_file)
    pool = ThreadPoolExecutor(_CALLS_IN_FLIGHT)
    client = Client(endpoint, timeout=timeout, credentials=credentials)
    with _unavailable_explained(endpoint), pool, client:
        batches = _batches(_standard_input(), _lines_per_call(client)) if text is None else [[text]]
        translations = _translate_in_order(client, pool, batches, options)
        for number, translation in enumerate(translations, start=1):
            sys.stdout.write((_as_json if json else _as_text)(translation) + "\n")
            if translation.truncated:
                cut.append(number)
    if cut:
        sys.stderr.write(f"dragoman: warning: {len(cut)} translations were cut, the first of text {cut[0]}\n")


@contextlib.contextmanager
def _unavailable_explained(endpoint: str) -> Iterator[None]:
    try:
        yield
    except Unavailable as error:
        fix = "start one with `dragoman serve`, or name another with --endpoint"
        raise Unavailable(f"no server answers at {endpoint}: {fix} ({error})") from error


def _standard_input() -> Iterator[str]:
    """The lines of standard input as they are, but for the line feed."""
    stream = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", newline="\n")
    for line in stream:
        yield line.removesuffix("\n")


def _lines_per_call(client: Client) -> int:
    """As many as every model of the server takes; one where a person types them."""
    if sys.stdin.isatty():
        return 1
    limits = [client.model(summary.name).limits for summary in client.models()]
    return min(_LINES_PER_CALL, *(limit.max_texts for limit in limits))


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    remaining = iter(texts)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


def _translate_in_order(
    client: Client, pool: ThreadPoolExecutor, batches: Iterable[list[str]], options: TranslateOptions
) -> Iterator[Translation]:
    """Translate batches, several at once, and yield in order; holds no more than those in flight."""

    def call(first: int, batch: list[str]) -> list[Translation]:
        try:
            return client.translate(batch, **dataclasses.asdict(options))
        except InvalidArgument as error:
            raise InvalidArgument(_numbered(str(error), first), error.field) from error

    first = 1
    pending: deque[Future[list[Translation]]] = deque()
    for batch in batches:
        pending.append(pool.submit(call, first, batch))
        first += len(batch)
        if len(pending) == _CALLS_IN_FLIGHT:
            yield from pending.popleft().result()
    for future in pending:
        yield from future.result()


def _numbered(message: str, first: int) -> str:
    """The server counts the texts of a call from 0; the user counts those of the input from 1."""
    return re.sub(r"^texts\[(\d+)\]", lambda match: f"text {first + int(match[1])}", message)


def _as_text(translation: Translation) -> str:
    if len(translation.hypotheses) == 1:
        return translation.text
    return "\n".join(f"{hypothesis.score:.4f}\t{hypothesis.text}" for hypothesis in translation.hypotheses)


def _as_json(translation: Translation) -> str:
    record = {"text": translation.text, **dataclasses.asdict(translation)}
    return json_format.dumps(record, ensure_ascii=False, default=lambda value: value.value)
