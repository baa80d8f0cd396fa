"""Answers under load against those of the unloaded server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dragoman.options import TranslateOptions
from dragoman_loadtest import golden
from dragoman_loadtest.corpus import Corpus
from dragoman_loadtest.golden import compare_answers, golden_answers
from dragoman_loadtest.options import Target
from dragoman_loadtest.samples import RECORD, Code, Samples

TEXTS = ("a small house", "two old dogs run", "it rains in the town", "no")
ANSWERS = {i: text.upper() for i, text in enumerate(TEXTS)}
CORPUS = Corpus("texts", TEXTS)
MODEL = {"manifest_sha256": "abc", "precision": "fp32"}


def samples(*answers: str | None, items: Sequence[int] = range(4)) -> Samples:
    """Answers to texts; None for a refusal."""
    records = np.zeros(len(answers), RECORD)
    records["request"] = 100 + np.arange(len(answers))
    records["item"] = items
    records["code"] = [Code.UNAVAILABLE if answer is None else Code.OK for answer in answers]
    return Samples(records, list(answers))


def test_equal_answers_are_identical() -> None:
    found = compare_answers(samples(*ANSWERS.values()), ANSWERS, CORPUS)
    assert (found["compared"], found["identical"], found["identical_share"]) == (4, 4, 1.0)
    assert found["different"] == []
    assert "against_golden" not in found
    assert "reference" not in found


def test_a_differing_answer_is_named() -> None:
    found = compare_answers(samples(ANSWERS[0], "TWO", ANSWERS[2], ANSWERS[3]), ANSWERS, CORPUS)
    assert (found["identical"], found["identical_share"]) == (3, 0.75)
    assert found["different"] == [
        {"request": 101, "line": 2, "source": TEXTS[1], "golden": ANSWERS[1], "loaded": "TWO"}
    ]
    assert 0.0 < found["against_golden"]["chrf"] < 100.0


def test_ten_differing_answers_are_named_and_all_are_counted() -> None:
    found = compare_answers(samples(*["WRONG"] * 12, items=[0] * 12), ANSWERS, CORPUS)
    assert [entry["request"] for entry in found["different"]] == list(range(100, 110))
    assert found["identical"] == 0


def test_a_refusal_is_not_compared() -> None:
    found = compare_answers(samples(ANSWERS[0], None, items=(0, 9)), ANSWERS, CORPUS)
    assert (found["compared"], found["identical_share"]) == (1, 1.0)


def test_without_an_answer_there_is_nothing_to_compare() -> None:
    found = compare_answers(samples(None, items=(0,)), ANSWERS, Corpus("t", TEXTS, TEXTS))
    assert (found["compared"], found["identical_share"]) == (0, None)
    assert "reference" not in found


def test_both_are_scored_by_the_reference() -> None:
    references = Corpus("texts", TEXTS, tuple(ANSWERS.values()))
    right = compare_answers(samples(*ANSWERS.values()), ANSWERS, references)["reference"]
    assert right["loaded"] == right["golden"]
    assert right["golden"]["chrf"] == pytest.approx(100.0)
    assert (right["bleu_difference"], right["chrf_difference"]) == (0.0, 0.0)
    assert "version" in right["golden"]["bleu_signature"]
    wrong = compare_answers(samples("A SMALL HOUSE", "DOGS", "RAINS", "NO"), ANSWERS, references)["reference"]
    assert wrong["chrf_difference"] < 0.0
    assert wrong["bleu_difference"] == wrong["loaded"]["bleu"] - wrong["golden"]["bleu"] < 0.0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Which texts the server was asked for, at each occasion; it answers in capitals."""
    occasions: list[list[int]] = []

    async def ask(
        target: Target, corpus: Corpus, options: Any, items: list[int], progress: Any
    ) -> dict[int, str]:
        occasions.append(list(items))
        return {item: corpus.texts[item].upper() for item in items}

    monkeypatch.setattr(golden, "_asked", ask)
    return occasions


def answers(
    cache: Path,
    items: Sequence[int],
    corpus: Corpus = CORPUS,
    options: TranslateOptions | None = None,
    model: dict[str, Any] = MODEL,
) -> dict[int, str]:
    options = options or TranslateOptions()
    return golden_answers(Target(), corpus, options, items, model, cache, lambda done, total: None)


def test_what_the_cache_has_is_not_asked_again(tmp_path: Path, asked: list[list[int]]) -> None:
    cache = tmp_path / "new" / "cache"
    answers(cache, [0, 2])
    assert answers(cache, [0, 1, 2]) == {i: ANSWERS[i] for i in (0, 1, 2)}
    assert answers(cache, [1, 2])[2] == ANSWERS[2]
    assert asked == [[0, 2], [1]]


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"manifest_sha256": "other", "precision": "fp32"}},
        {"model": {"manifest_sha256": "abc", "precision": "int8"}},
        {"options": TranslateOptions(beam_size=1)},
        {"corpus": Corpus("other", (*TEXTS, "more"))},
    ],
)
def test_what_may_change_an_answer_has_it_asked_anew(
    tmp_path: Path, asked: list[list[int]], change: dict[str, Any]
) -> None:
    answers(tmp_path, [0])
    answers(tmp_path, [0], **change)
    assert asked == [[0], [0]]


def test_another_name_of_the_same_texts_does_not(tmp_path: Path, asked: list[list[int]]) -> None:
    answers(tmp_path, [0])
    answers(tmp_path, [0], corpus=Corpus("renamed", TEXTS, TEXTS))
    assert asked == [[0]]


@pytest.mark.parametrize("content", ["", '{"0": "A SM', "[1]", '{"x": "A"}'])
def test_a_cache_file_that_is_not_whole_is_asked_anew(
    tmp_path: Path, asked: list[list[int]], content: str
) -> None:
    answers(tmp_path, [0])
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    assert answers(tmp_path, [0])[0] == ANSWERS[0]
    assert asked == [[0], [0]]
