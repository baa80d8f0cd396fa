"""The texts of a load test, and their references."""

from __future__ import annotations

from pathlib import Path

import pytest

from dragoman_loadtest.corpus import Corpus


def written(folder: Path, name: str, content: bytes) -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


def test_every_line_is_a_text(tmp_path: Path) -> None:
    corpus = Corpus.read(written(tmp_path, "a.en", b"one\r\ntwo\x0chalves\n\xc3\xa9t\xc3\xa9\xe2\x80\xa8!"))
    assert corpus.texts == ("one", "two\x0chalves", "été\u2028!")
    assert (corpus.name, corpus.references) == ("a.en", None)


def test_a_blank_text_goes_with_its_reference(tmp_path: Path) -> None:
    corpus = Corpus.read(
        written(tmp_path, "a.en", b"one\n\n  \nfour\n"),
        written(tmp_path, "a.de", b"eins\nzwei\ndrei\nvier\n"),
    )
    assert corpus.texts == ("one", "four")
    assert corpus.references == ("eins", "vier")


def test_a_text_without_a_reference_translation_stays(tmp_path: Path) -> None:
    corpus = Corpus.read(written(tmp_path, "a.en", b"one\ntwo\n"), written(tmp_path, "a.de", b"\nzwei\n"))
    assert (corpus.texts, corpus.references) == (("one", "two"), ("", "zwei"))


def test_files_that_are_not_aligned_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line-aligned") as caught:
        Corpus.read(written(tmp_path, "a.en", b"one\ntwo\n"), written(tmp_path, "a.de", b"eins\n"))
    assert "a.en has 2 lines" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "no text"), (b"\n \n", "no text"), (b"ab\xff", "byte 2")]
)
def test_a_file_without_texts_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Corpus.read(written(tmp_path, "a.en", content))
    assert "a.en" in str(caught.value)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.en: No such file"):
        Corpus.read(tmp_path / "gone.en")


def test_the_hash_is_that_of_the_texts() -> None:
    assert Corpus("a", ("one", "two")).sha256 == Corpus("b", ("one", "two"), ("eins", "zwei")).sha256
    assert Corpus("a", ("one", "two")).sha256 != Corpus("a", ("two", "one")).sha256
