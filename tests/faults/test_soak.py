"""The soak in little, and that its gate finds what it is there for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOAK = Path(__file__).parent / "soak.py"
FEW = ("--max-mb", 3000)
"""So few requests do not tell the noise of memory from its growth: 30 kB a request."""


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SOAK, *map(str, words)], capture_output=True, text=True, timeout=3000, check=False
    )


def test_a_small_soak_leaves_nothing_behind(tmp_path: Path, figures) -> None:
    done = run("--requests", 2000, "--out", tmp_path / "soak.json", *FEW)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    record = json.loads((tmp_path / "soak.json").read_text())
    assert sum(sum(counts.values()) for counts in record["outcomes"].values()) == 2001
    assert record["unexpected"] == []
    figures("soak of 2,000 requests", "outcomes that were not expected", 0, "none")


def test_a_leak_is_found(tmp_path: Path, full, figures) -> None:
    """In full: 2 kB a sentence, by the bound of the great soak."""
    leak = ("--requests", 20_000, "--leak", 2048) if full else ("--requests", 1000, "--leak", 65536, *FEW)
    done = run(*leak, "--out", tmp_path / "soak.json")
    assert done.returncode == 1, done.stdout + done.stderr[-2000:]
    [finding] = [line for line in done.stdout.splitlines() if line.startswith("memory grows by ")]
    assert "unexpected" not in done.stdout
    figures(f"a leak of {leak[3]} bytes a sentence", "found", finding, "must be")


def recorded(**others: Any) -> dict[str, Any]:
    """A run of 200,000 requests with nothing amiss, but for what is given; `leak` in MB a sample."""
    leak, descriptors = others.pop("leak", 0.0), others.pop("descriptors", 15)
    samples = [
        {
            "requests": 2500 * number,
            "memory_mb": 200.0 + (number % 3) + leak * number,
            "descriptors": 15 if number < 70 else descriptors,
            "threads": 11,
            "tasks": 12,
        }
        for number in range(1, 81)
    ]
    sound = {"requests": 200_000, "seconds": 1.0, "outcomes": {}, "unexpected": [], "samples": samples}
    return sound | {"left_behind": {"slots_in_use": 0.0}, "same_translation": True, "exit_code": 0} | others


@pytest.mark.parametrize(
    ("others", "findings"),
    [
        ({}, []),
        # 2 kB a request.
        ({"leak": 2500 * 0.002}, ["memory grows by 200.00 MB per 100,000 requests"]),
        (
            {
                "unexpected": ["short: CHANGED"],
                "descriptors": 16,
                "left_behind": {"slots_in_use": 2.0},
                "same_translation": False,
                "exit_code": 1,
            },
            [
                "unexpected: short: CHANGED",
                "descriptors: 16 or more all the last tenth, 15 at most in the first half",
                "left behind: 2 slots_in_use",
                "the usual translation is another than before",
                "the server ended with 1",
            ],
        ),
    ],
    ids=["sound", "leak", "all else"],
)
def test_an_earlier_record_is_judged(tmp_path: Path, others, findings) -> None:
    (tmp_path / "soak.json").write_text(json.dumps(recorded(**others)))
    done = run("--judge", tmp_path / "soak.json")
    told = done.stdout.splitlines()[1:]
    assert done.returncode == bool(findings)
    if not findings:
        assert told == ["200000 requests in 1.0 s: all as it should be"]
    else:
        assert len(told) == len(findings)
        assert all(line.startswith(finding) for line, finding in zip(told, findings, strict=True))


def test_too_few_requests_are_refused() -> None:
    done = run("--requests", 10)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "soak.py: error: --requests must be at least 100, not 10"
