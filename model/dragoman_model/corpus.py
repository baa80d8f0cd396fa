"""Parallel text: line-aligned files or tab-separated pairs, read as a stream.

Whatever is wrong with a line costs that pair alone: it is counted, reported, and the alignment of the rest
stays as it was, because lines are separated by the newline byte before anything is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

__all__ = ["CorpusError", "CorpusReport", "ParallelCorpus"]


class CorpusError(ValueError):
    """The corpus as a whole cannot be used; the message names the file and the fix."""


@dataclass(slots=True)
class CorpusReport:
    """What reading a corpus met, in pairs."""

    read: int = 0
    kept: int = 0
    empty: int = 0
    """One side or both blank."""
    not_utf8: int = 0
    malformed: int = 0
    """A line of a TSV without exactly one tab."""
    over_long: int = 0
    """More tokens than the limit, on either side."""
    unpaired: int = 0
    """Lines of the longer file beyond the end of the shorter one."""

    def __str__(self) -> str:
        found = {
            "empty": self.empty,
            "not UTF-8": self.not_utf8,
            "without exactly one tab": self.malformed,
            "over-long": self.over_long,
            "unpaired": self.unpaired,
        }
        dropped = ", ".join(f"{count} {name}" for name, count in found.items() if count)
        return f"{self.kept} of {self.read} pairs kept" + (f"; dropped: {dropped}" if dropped else "")


@dataclass(frozen=True, slots=True)
class ParallelCorpus:
    """Sentence pairs in one TSV file (`source<TAB>target`) or in two files of the same number of lines.

    Raises:
        CorpusError: not one or two files, or one is missing.
    """

    files: tuple[Path, ...]

    def __post_init__(self) -> None:
        if len(self.files) not in (1, 2):
            raise CorpusError(
                f"a corpus is one TSV file or two line-aligned files, not {len(self.files)} files"
            )
        for file in self.files:
            if not file.is_file():
                raise CorpusError(f"{file}: no such file")

    def pairs(self, report: CorpusReport) -> Iterator[tuple[str, str]]:
        """Yield the usable pairs in order, white space at their ends removed, and count the others."""
        with _open_all(self.files) as streams:
            for line in (
                _tab_separated(streams[0], report) if len(streams) == 1 else _aligned(streams, report)
            ):
                report.read += 1
                pair = _decode(line, report)
                if pair is not None:
                    report.kept += 1
                    yield pair


class _open_all:  # noqa: N801  # a context manager used like a function
    def __init__(self, files: Sequence[Path]) -> None:
        self.streams: list[BinaryIO] = [file.open("rb") for file in files]

    def __enter__(self) -> list[BinaryIO]:
        return self.streams

    def __exit__(self, *_: object) -> None:
        for stream in self.streams:
            stream.close()


def _tab_separated(stream: BinaryIO, report: CorpusReport) -> Iterator[tuple[bytes, bytes]]:
    for line in stream:
        parts = line.rstrip(b"\r\n").split(b"\t")
        if len(parts) == 2:
            yield parts[0], parts[1]
        else:
            report.read += 1
            report.malformed += 1


def _aligned(streams: list[BinaryIO], report: CorpusReport) -> Iterator[tuple[bytes, bytes]]:
    source, target = streams
    for left in source:
        right = target.readline()
        if not right:
            report.read += 1
            report.unpaired += 1
            continue
        yield left, right
    for _ in target:
        report.read += 1
        report.unpaired += 1


def _decode(line: tuple[bytes, bytes], report: CorpusReport) -> tuple[str, str] | None:
    try:
        source, target = (part.decode("utf-8").strip().lstrip("\ufeff") for part in line)
    except UnicodeDecodeError:
        report.not_utf8 += 1
        return None
    if not source or not target:
        report.empty += 1
        return None
    return source, target
