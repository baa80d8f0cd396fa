"""Reading parallel text that is not perfect."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman_model.corpus import CorpusError, CorpusReport, ParallelCorpus


def read(*files: Path) -> tuple[list[tuple[str, str]], CorpusReport]:
    report = CorpusReport()
    return list(ParallelCorpus(files).pairs(report)), report


def write(folder: Path, source: bytes, target: bytes) -> tuple[Path, Path]:
    (folder / "s").write_bytes(source)
    (folder / "t").write_bytes(target)
    return folder / "s", folder / "t"


def test_a_bad_line_costs_its_pair_and_nothing_else(tmp_path: Path) -> None:
    files = write(tmp_path, b"one\n\xff\xfe\n\nfour\nfive\r\n", b"eins\nzwei\ndrei\n  \nf\xc3\xbcnf\n")
    pairs, report = read(*files)
    assert pairs == [("one", "eins"), ("five", "fünf")]
    assert report == CorpusReport(read=5, kept=2, empty=2, not_utf8=1)


def test_line_separators_of_unicode_do_not_shift_the_alignment(tmp_path: Path) -> None:
    files = write(tmp_path, "a\u2028b\x0bc\x85d\nlast\n".encode(), b"eins\nletzte\n")
    pairs, _ = read(*files)
    assert [target for _, target in pairs] == ["eins", "letzte"]


@pytest.mark.parametrize(("source", "target"), [(b"a\nb\nc\n", b"x\n"), (b"a\n", b"x\ny\nz")])
def test_lines_beyond_the_shorter_file_are_counted(tmp_path: Path, source: bytes, target: bytes) -> None:
    pairs, report = read(*write(tmp_path, source, target))
    assert pairs == [("a", "x")]
    assert report.unpaired == 2
    assert "2 unpaired" in str(report)


def test_tsv(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_bytes(b"one\teins\nno tab\ntoo\tmany\ttabs\ntwo\tzwei")
    pairs, report = read(tmp_path / "x.tsv")
    assert pairs == [("one", "eins"), ("two", "zwei")]
    assert report.malformed == 2
    assert report.read == 4


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"nothing\.en: no such file"):
        ParallelCorpus((tmp_path / "nothing.en", tmp_path / "nothing.de"))
    with pytest.raises(CorpusError, match="not 3 files"):
        ParallelCorpus((tmp_path / "a", tmp_path / "b", tmp_path / "c"))


@settings(max_examples=50, deadline=None)
@given(lines=st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=12)), max_size=12))
def test_every_line_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[bytes, bytes]]
) -> None:
    clean = [tuple(part.replace(b"\n", b"") for part in line) for line in lines]
    folder = tmp_path_factory.mktemp("corpus")
    files = write(folder, *(b"".join(line[side] + b"\n" for line in clean) for side in (0, 1)))
    pairs, report = read(*files)
    assert report.read == len(lines)
    assert report.kept == len(pairs)
    assert report.kept + report.empty + report.not_utf8 == report.read
