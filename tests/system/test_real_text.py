"""Real text, from the folder that DRAGOMAN_DATA names: `*.en` and `*.de` files, line-aligned where paired."""

import os
from pathlib import Path

import pytest

from dragoman_model.corpus import CorpusReport, ParallelCorpus
from dragoman_model.evaluation import read_lines
from dragoman_server.segments import join, split

DATA = Path(os.environ.get("DRAGOMAN_DATA", "/nonexistent"))
pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA.is_dir(), reason="DRAGOMAN_DATA names no folder of real text"),
]


def test_paired_files_align() -> None:
    pairs = [(file, file.with_suffix(".de")) for file in sorted(DATA.rglob("*.en"))]
    read = [ParallelCorpus(pair) for pair in pairs if pair[1].is_file()]
    assert read
    for corpus in read:
        report = CorpusReport()
        assert sum(1 for _ in corpus.pairs(report)) == report.kept > 0.99 * report.read
        assert report.unpaired == 0


@pytest.mark.parametrize("language", ["en", "de"])
def test_segments_join_to_the_text(language: str) -> None:
    files = sorted(DATA.rglob(f"test*.{language}"))
    assert files
    for file in files:
        lines = read_lines(file)
        for text in (*lines, "\n".join(lines[:50]), "  ".join(lines[:50]) + "\r\n"):
            segments = split(text, language)
            assert join(segments, [segment.text for segment in segments]) == text
