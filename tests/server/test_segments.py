from __future__ import annotations

import time

import pytest
import sentencex
from hypothesis import given
from hypothesis import strategies as st

from dragoman_server.segments import Segment, fit, join, split

LANGUAGES = ["en", "de", "fr", "ja", "hi", "ar", "am", "xx", ""]
AWKWARD = (
    "aBc .!?,;:\n\r\t\v\f\x1c\x85\u00a0\u2028\u2029\u3000\u2009"
    "\u200b\ufeff\u0301\u3002\uff1f\u061f\"')(\u00bb1\0\U0001f600"
)

texts = st.one_of(st.text(), st.text(alphabet=AWKWARD))


def texts_of(segments: list[Segment]) -> list[str]:
    return [segment.text for segment in segments]


@given(texts, st.sampled_from(LANGUAGES))
def test_segments_joined_are_the_text(text: str, language: str) -> None:
    segments = split(text, language)
    assert join(segments, texts_of(segments)) == text
    for segment in segments:
        assert segment.text == segment.text.strip()
        assert not segment.leading.strip()
    assert all(texts_of(segments)[:-1])


@given(texts, st.integers(1, 20))
def test_pieces_fit_and_keep_the_text(text: str, max_tokens: int) -> None:
    def count(piece: str) -> int:
        return len(piece.encode())

    pieces = [piece for segment in split(text, "en") for piece in fit(segment, max_tokens, count)]
    assert join(pieces, texts_of(pieces)) == text
    assert all(count(piece.text) <= max_tokens or len(piece.text) == 1 for piece in pieces)


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Mr. Smith came. He left!", "en", ["Mr. Smith came.", "He left!"]),
        ("Das kostet z. B. 3.50 Euro. Gut.", "de", ["Das kostet z. B. 3.50 Euro.", "Gut."]),
        ("A heading\nA line", "en", ["A heading", "A line"]),
        ("one\r\ntwo\u2028three\x85four", "en", ["one", "two", "three", "four"]),
        ("\u4f60\u597d\u3002\u518d\u89c1\u3002", "zh", ["\u4f60\u597d\u3002", "\u518d\u89c1\u3002"]),
        ("", "en", []),
    ],
)
def test_sentences_and_lines_are_segments(text: str, language: str, expected: list[str]) -> None:
    assert texts_of(split(text, language)) == expected


def test_white_space_stays_between_segments() -> None:
    assert split("\t One.  Two.\r\n\n Three. ", "en") == [
        Segment("\t ", "One."),
        Segment("  ", "Two."),
        Segment("\r\n\n ", "Three."),
        Segment(" ", ""),
    ]
    assert split(" \n", "en") == [Segment(" \n", "")]


def test_long_sentences_are_split_where_it_hurts_least() -> None:
    def pieces(text: str, max_tokens: int) -> list[tuple[str, str]]:
        return [(s.leading, s.text) for s in fit(Segment("\n", text), max_tokens, len)]

    assert pieces("aaaa, bb cc dddd", 10) == [("\n", "aaaa,"), (" ", "bb cc dddd")]
    assert pieces("aaaa bb cc dddd", 8) == [("\n", "aaaa bb"), (" ", "cc dddd")]
    assert pieces("aaaaaaaa", 4) == [("\n", "aaaa"), ("", "aaaa")]
    assert pieces("a, bbbbbbbbbbbbb", 8) == [("\n", "a, bbbbb"), ("", "bbbbbbbb")]
    assert pieces("short", 5) == [("\n", "short")]


@pytest.mark.parametrize("text", ["\xa0B\xa0.\t", '.B\xa0."\ufeff?\u00bb', "a(\u2009B\u3000.\xa0"])
def test_white_space_that_the_library_panics_at(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BaseException, match="char boundary"):
        sentencex.segment("en", text)
    capfd.readouterr()
    segments = split(text, "en")
    assert join(segments, texts_of(segments)) == text
    assert "panicked" not in capfd.readouterr().err


def test_a_panic_of_the_library_leaves_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(language: str, text: str) -> list[str]:
        return original(language, "\xa0B\xa0.\t")

    original = sentencex.segment
    monkeypatch.setattr(sentencex, "segment", panic)
    assert texts_of(split("One. Two.", "en")) == ["One. Two."]


def test_a_library_that_loses_text_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentencex, "segment", lambda language, text: [text.replace("  ", " ")])
    assert texts_of(split("One.  Two.", "en")) == ["One.  Two."]


@pytest.mark.parametrize("text", ["a", ".", "a.\n", "Mr. ", "a, ", '"', "\u3002"])
def test_time_does_not_explode(text: str) -> None:
    started = time.process_time()
    for segment in split(text * 10_000, "en"):
        fit(segment, 100, len)
    assert time.process_time() - started < 2
