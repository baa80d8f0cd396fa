"""The command `dragoman evaluate`."""

from __future__ import annotations

import asyncio
import dataclasses
import json as json_format
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import track

import dragoman
from dragoman_model.evaluation import Translate, moses_lower, read_lines, score
from dragoman_server.engine.messages import DecodingOptions

__all__ = ["evaluate"]

_GROUP = 32  # texts handed over at once


def evaluate(
    *,
    source: Path,
    reference: Path,
    checkpoint: Path | None = None,
    bundle: Path | None = None,
    precision: str = "auto",
    endpoint: str | None = None,
    options: Annotated[DecodingOptions, Parameter(name="*")] = DecodingOptions(),  # noqa: B008  # frozen
    moses: str | None = None,
    output: Path | None = None,
    scores: Path | None = None,
    json: bool = False,
) -> None:
    """Translate a test set and score it with sacreBLEU: BLEU and chrF, with their signatures.

    Args:
        source: Texts to translate, one a line.
        reference: Their translations, one a line.
        checkpoint: Translate with this checkpoint, in torch.
        bundle: Translate with this bundle, in this process.
        precision: Which of the bundle's; auto as for `dragoman serve`.
        endpoint: Translate with the server at HOST:PORT.
        options: How to search.
        moses: A language such as de: lower-case, punctuation-normalise and Moses-tokenise the output, and
            compare it with a reference that is all that already, as Wu et al. 2021 do.
        output: Also write the translations to this file.
        scores: Also write the scores to this file, for `dragoman export --scores`.
        json: Print the scores as JSON.
    """
    texts, references = read_lines(source), read_lines(reference)
    if len(texts) != len(references):
        raise ValueError(
            f"{source} has {len(texts)} lines, {reference} has {len(references)}: they must align"
        )
    with _translator(checkpoint, bundle, precision, endpoint, options) as translate:
        outputs = [text for group in _progress(texts) for text in translate(group)]
    if output is not None:
        output.write_text("".join(line.replace("\n", " ") + "\n" for line in outputs), encoding="utf-8")
    found = score(moses_lower(outputs, moses) if moses else outputs, references, tokenised=bool(moses))
    if scores is not None:
        scores.write_text(json_format.dumps(found.records(reference.name), indent=2) + "\n", encoding="utf-8")
    sys.stdout.write((json_format.dumps(dataclasses.asdict(found)) if json else str(found)) + "\n")


def _progress(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    groups = [texts[start : start + _GROUP] for start in range(0, len(texts), _GROUP)]
    yield from track(groups, "translating", console=Console(stderr=True))


@contextmanager
def _translator(
    checkpoint: Path | None,
    bundle: Path | None,
    precision: str,
    endpoint: str | None,
    options: DecodingOptions,
) -> Iterator[Translate]:
    if [checkpoint, bundle, endpoint].count(None) != 2:
        raise ValueError("give exactly one of --checkpoint, --bundle and --endpoint")
    if checkpoint is not None:
        yield _from_checkpoint(checkpoint, options)
    elif bundle is not None:
        with _from_bundle(bundle, precision, options) as translate:
            yield translate
    elif endpoint is not None:
        with _from_endpoint(endpoint, options) as translate:
            yield translate


def _from_checkpoint(folder: Path, options: DecodingOptions) -> Translate:
    from dragoman_model.checkpoint import load_checkpoint
    from dragoman_model.evaluation import checkpoint_translator

    return checkpoint_translator(load_checkpoint(folder), options)


@contextmanager
def _from_bundle(folder: Path, precision: str, options: DecodingOptions) -> Iterator[Translate]:
    from dragoman_server.config import ServerConfig
    from dragoman_server.loading import load
    from dragoman_server.metrics import ServerMetrics

    config = ServerConfig(models=folder, precision=precision, max_beam_size=options.beam_size)
    loaded = load(folder, config, ServerMetrics())
    direction = loaded.served.description.first_direction

    def translate(texts: Sequence[str]) -> list[str]:
        found = asyncio.run(loaded.served.translator.translate(texts, direction, options, deadline=None))
        return [translation.hypotheses[0].text for translation in found]

    try:
        yield translate
    finally:
        loaded.engine.close()


@contextmanager
def _from_endpoint(endpoint: str, options: DecodingOptions) -> Iterator[Translate]:
    with dragoman.Client(endpoint) as client:

        def translate(texts: Sequence[str]) -> list[str]:
            arguments = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
            return [translation.text for translation in client.translate(list(texts), **arguments)]

        yield translate
