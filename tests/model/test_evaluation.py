"""Scoring."""

from pathlib import Path

import pytest

from dragoman_model.evaluation import moses_lower, read_lines, score


def test_scores_carry_their_signatures() -> None:
    same = score(["The cat sat on the mat."], ["The cat sat on the mat."])
    assert (same.bleu, same.chrf) == (pytest.approx(100.0), pytest.approx(100.0))
    assert "tok:13a" in same.bleu_signature
    assert "tok:none" in score(["a b c d"], ["a b c d"], tokenised=True).bleu_signature


def test_tokens_are_compared_as_they_are() -> None:
    assert score(["a b c d,"], ["a b c d ,"], tokenised=True).bleu < 100
    assert score(["a b c d,"], ["a b c d ,"]).bleu == pytest.approx(100.0)


def test_moses_lower() -> None:
    assert moses_lower(["Ein Mann, der „läuft“."], "de") == ["ein mann , der &quot; läuft &quot; ."]


def test_unequal_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="2 translations cannot be scored against 1"):
        score(["a", "b"], ["a"])


def test_lines_are_split_at_newlines_alone(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes("a\u2028b\n\nc\n".encode())
    assert read_lines(file) == ["a\u2028b", "", "c"]
    file.write_bytes(b"fine\n\xff\n")
    with pytest.raises(ValueError, match="line 2 is not UTF-8"):
        read_lines(file)


def test_carriage_returns_before_newlines_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_bytes(b"a\r\n\r\nb\rc\r\n")
    assert read_lines(file) == ["a", "", "b\rc"]
