"""Scripted servers in processes of their own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

FAKE = Path(__file__).parent / "fake_server.py"


@pytest.fixture
def fake_server() -> Iterator[Callable[..., str]]:
    """Starts a server with the flags of `fake_server.py`; returns its address."""
    with contextlib.ExitStack() as stack:

        def start(*flags: object) -> str:
            words = [sys.executable, str(FAKE), *map(str, flags)]
            process = stack.enter_context(
                subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.terminate)
            assert process.stdout is not None
            return process.stdout.readline().strip()

        yield start


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    """A hundred sentences of one to twenty words."""
    file = tmp_path / "corpus.en"
    file.write_text("".join(f"{' '.join(['word'] * (i % 20))} number {i}\n" for i in range(100)))
    return file
