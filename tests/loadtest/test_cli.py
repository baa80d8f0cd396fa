"""`dragoman loadtest` as a user types it, against scripted servers."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from dragoman.cli import main
from dragoman_loadtest.store import read_records

Start = Callable[..., str]
Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden answers of one test are not those of another; a busy machine does not make a run invalid."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("dragoman_loadtest.figures._LAG_SECONDS", 30.0)


@pytest.fixture
def run(corpus_file: Path, tmp_path: Path) -> Run:
    """Runs the command with a short load; returns the exit code and `run.json`."""

    def loadtest(endpoint: str, *flags: object, out: str = "out") -> tuple[int, dict[str, Any]]:
        words = ["loadtest", "--corpus", corpus_file, "--endpoint", endpoint, "--out", tmp_path / out]
        code = main([*map(str, words), "--warm-up", "0", *map(str, flags)])
        file = tmp_path / out / "run.json"
        return code, json.loads(file.read_text()) if file.exists() else {}

    return loadtest


def test_a_run_leaves_its_figures_requests_histograms_and_pictures(
    fake_server: Start, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = run(fake_server(), "--rate", 50, "--duration", "2s")
    assert code == 0
    assert found["schema"] == 1
    assert found["figures"]["requests"]["answered"] == found["figures"]["requests"]["sent"] > 50
    assert found["answers"]["identical_share"] == 1.0
    assert found["model"]["summary"]["name"] == "fake"
    assert len(read_records(tmp_path / "out")) == found["figures"]["requests"]["sent"]
    assert (tmp_path / "out" / "latency.hlog").stat().st_size > 0
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()
    assert "answers are those of the unloaded server" in capsys.readouterr().out


def test_one_wrong_answer_and_one_slow_one_are_found_and_named(
    fake_server: Start, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = fake_server("--wrong-every", 1000, "--slow-every", 777, "--slow", 1.5)
    flags = ("--rate", 500, "--arrivals", "constant", "--duration", "2.2s", "--processes", 1)
    _, found = run(address, *flags)
    assert found["answers"]["compared"] == 1100
    [wrong] = found["answers"]["different"]
    assert wrong["loaded"] == wrong["golden"] + " WRONG"
    slowest = found["figures"]["slowest"][0]
    assert slowest["latency"] >= 1.5
    page = re.sub("<[^>]*>", "", (tmp_path / "out" / "report.html").read_text())
    shown = capsys.readouterr().out
    for text in (wrong["loaded"][-20:], slowest["text"][-20:]):
        assert text in page
    assert f"request {wrong['request']}, line {wrong['line']}" in shown


@pytest.mark.parametrize(
    ("slo", "expected"),
    [("p97<2s,errors<50%", 0), ("p97<5ms", 1), ("p99.9<2s", 3)],
    ids=["pass", "fail", "undecided"],
)
def test_the_exit_code_is_the_verdict(fake_server: Start, run: Run, slo: str, expected: int) -> None:
    address = fake_server("--delay", 0.02)
    code, found = run(address, "--rate", 150, "--duration", "3s", "--slo", slo, "--no-check")
    assert code == expected
    assert found["answers"] is None


def test_a_run_that_was_not_sent_on_time_is_invalid(
    fake_server: Start, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dragoman_loadtest.figures._LAG_SECONDS", 0.0)
    monkeypatch.setattr("dragoman_loadtest.figures._LAG_SHARE", 0.0)
    code, found = run(fake_server(), "--rate", 50, "--duration", "1s", "--slo", "errors<50%", "--no-check")
    assert code == 4
    assert not found["figures"]["self_check"]["valid"]
    assert "INVALID" in capsys.readouterr().out


def test_json_alone_goes_to_standard_output(
    fake_server: Start, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run(fake_server(), "--rate", 20, "--duration", "1s", "--json")
    assert json.loads(capsys.readouterr().out)["kind"] == "run"


def test_compare_accepts_the_same_and_refuses_a_slower_one(
    fake_server: Start, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--rate", 60, "--duration", "3s", "--no-check")
    fast, slow = fake_server("--delay", 0.05), fake_server("--delay", 0.4)
    for address, out in ((fast, "a"), (fast, "again"), (slow, "b")):
        run(address, *flags, out=out)
    folders = {name: str(tmp_path / name) for name in ("a", "again", "b")}
    assert main(["loadtest", "compare", folders["a"], folders["again"], "--threshold", "4"]) == 0
    assert main(["loadtest", "compare", folders["a"], folders["b"], "--threshold", "0.2"]) == 1
    assert "regression" in capsys.readouterr().out


def test_compare_refuses_different_loads(
    fake_server: Start, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = fake_server()
    for seed, out in ((1, "a"), (2, "b")):
        run(address, "--rate", 20, "--duration", "1s", "--no-check", "--seed", seed, out=out)
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["loadtest", "compare", *folders]) == 2
    assert "--different-load" in capsys.readouterr().err
    assert main(["loadtest", "compare", *folders, "--different-load", "--threshold", "5"]) == 0


def test_ab_takes_turns_and_compares(fake_server: Start, run: Run, tmp_path: Path) -> None:
    a, b = fake_server("--delay", 0.05), fake_server("--delay", 0.15)
    code, _ = run(a, "--ab", b, "--rounds", 2, "--rate", 50, "--duration", "3s")
    assert code == 1
    sent = [read_records(tmp_path / "out" / side) for side in "ab"]
    assert sorted(sent[0]["item"]) == sorted(sent[1]["item"])
    assert max(sent[0]["scheduled"]) > 1.5  # the second turn stands behind the first


def test_the_peak_of_a_server_of_known_capacity_is_found(fake_server: Start, run: Run) -> None:
    address = fake_server("--serial", 0.02)  # 50 requests per second and not one more
    code, found = run(address, "--find-peak", "--slo", "p97<500ms", "--rate", 20, "--duration", "2s")
    assert code == 0
    assert 25.0 < found["peak"]["rate"] < 60.0
    assert found["peak"]["confirmed"] == 5


def test_a_sweep_shows_the_curve_beyond_the_peak(fake_server: Start, run: Run, tmp_path: Path) -> None:
    code, found = run(fake_server("--serial", 0.02), "--sweep", "--peak", 45, "--duration", "500ms")
    assert code == 0
    rates = [point["rate"] for point in found["sweep"]["points"]]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(1.5 * 45)
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()


def test_the_referee_judges_the_same_server(fake_server: Start, run: Run, tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen has no wheel for this platform")
    address = fake_server("--delay", 0.02)
    code, found = run(address, "--engine", "loadgen", "--slo", "p97<500ms", "--rate", 100, "--duration", "3s")
    assert code == 0
    assert found["loadgen"]["result"] == "VALID"
    assert found["loadgen"]["p97_nanoseconds"] >= 20e6
    assert found["loadgen"]["failed_requests"] == 0
    assert (tmp_path / "out" / "loadgen" / "mlperf_log_summary.txt").is_file()


def test_ctrl_c_still_writes_the_report(fake_server: Start, corpus_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["loadtest", "--corpus", corpus_file, "--endpoint", fake_server(), "--out", out]
    words += ["--rate", 50, "--duration", "60s", "--warm-up", 0]
    code = "import sys; from dragoman.cli import main; sys.exit(main())"
    with subprocess.Popen([sys.executable, "-c", code, *map(str, words)]) as process:
        time.sleep(5.0)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 4)  # 4 where this machine was too busy to send on time
    found = json.loads((out / "run.json").read_text())["figures"]
    assert found["interrupted"]
    assert 0 < found["requests"]["answered"] < 3000
    assert "nterrupted" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--slo", "p97<fast"], "duration"),
        (["--slo", "fast"], "does not read like p97<250ms"),
        (["--metrics", "example.org:9090"], "--i-own-this-host"),
        (["--rate", "0"], "--rate"),
        (["--duration", "2h"], "--duration"),
        (["--duration", "soon"], "duration"),
        (["--find-peak", "--sweep"], "give one of them"),
        (["--sweep"], "--slo"),
        (["--reference", "missing.de"], "missing.de"),
        (["--trace", "missing.csv"], "missing.csv"),
        (["--token-file", "t"], "--tls"),
        (["--model", "other"], "it serves fake"),
    ],
)
def test_a_mistake_is_one_line(
    fake_server: Start, run: Run, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    code, _ = run(fake_server(), *flags)
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_no_server_is_one_line(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dragoman_loadtest.server_view._CONNECT_SECONDS", 0.5)
    code, _ = run("127.0.0.1:1", "--rate", 1)
    assert code == 2
    assert "dragoman serve" in capsys.readouterr().err


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A certificate for this machine, its key, and the authority that signed it."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    files = tmp_path / "server.pem", tmp_path / "server.key", tmp_path / "ca.pem"
    issued.cert_chain_pems[0].write_to_path(str(files[0]))
    issued.private_key_pem.write_to_path(str(files[1]))
    authority.cert_pem.write_to_path(str(files[2]))
    return files


def test_tls_and_a_token_reach_a_server_that_asks_for_both(
    fake_server: Start, run: Run, certificate: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    address = fake_server("--certificate", certificate[0], "--key", certificate[1], "--token", "secret")
    token = tmp_path / "token"
    token.write_text("secret\n")
    flags = ("--tls", "--tls-ca", certificate[2], "--rate", 20, "--duration", "1s", "--no-check")
    code, found = run(address, *flags, "--token-file", token)
    assert code == 0
    assert found["figures"]["requests"]["failed"] == 0
    assert "secret" not in json.dumps(found)
    assert run(address, *flags, out="refused")[0] == 2


def test_the_command_alone_needs_the_extra_only_when_it_is_called() -> None:
    code = "import dragoman.cli, sys; sys.exit('dragoman_loadtest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
