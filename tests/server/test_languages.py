from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dragoman_server.engine.messages import DecodingOptions
from dragoman_server.languages import Direction, LanguageTokens
from dragoman_server.translator import Translator

# Ids that the test's codec decodes to nothing.
TOKENS = LanguageTokens(source={"en": 0, "fr": 1}, target={"de": 2, "cs": 1}, forced={"de": 501, "cs": 502})


@pytest.mark.parametrize(
    ("source", "target", "prefix", "first"),
    [("en", "de", (0, 2), 501), ("fr", "cs", (1, 1), 502), ("xx", "xx", (), None)],
)
def test_languages_are_named_by_tokens(
    source: str, target: str, prefix: tuple[int, ...], first: int | None
) -> None:
    direction = Direction(source, target)
    assert (TOKENS.prefix(direction), TOKENS.first(direction)) == (prefix, first)
    assert (LanguageTokens().prefix(direction), LanguageTokens().first(direction)) == ((), None)


def test_every_segment_names_the_languages_and_fits_with_them(engine: Any, model: Any) -> None:
    codec = model(engine).translator._source
    translator = Translator(
        engine, codec, codec, eos_id=3, max_source_tokens=12, max_segments=50, languages=TOKENS
    )
    text, options = "One two. three four five six seven", DecodingOptions()
    [found] = asyncio.run(translator.translate([text], Direction("fr", "de"), options, None))
    assert found.segments == len(engine.submitted) > 2
    assert "".join(found.hypotheses[0].text.split()) == "".join(text.upper().split())
    for request in engine.submitted:
        assert request.source[:2] == (1, 2)
        assert len(request.source) <= 12
        assert request.first_token == 501
