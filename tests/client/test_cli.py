from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dragoman import cli, cli_translate
from dragoman_server.engine.messages import FinishReason

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process; returns exit code, standard output, standard error."""

    def run(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = cli.main(arguments)
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture
def translate(run: Run, server: Any) -> Run:
    def translate(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        return run("translate", "--endpoint", server.address, *arguments, stdin=stdin)

    return translate


def test_a_text(translate: Run) -> None:
    assert translate("A dog\n runs.", "--source", "en", "--target", "de") == (0, "A DOG\n RUNS.\n", "")


def test_hypotheses_come_with_their_scores(translate: Run) -> None:
    assert translate("x", "--n-best", "2", "--beam-size", "3") == (0, "-0.5000\tX\n-1.5000\tX!\n", "")


def test_json_lines(translate: Run) -> None:
    code, output, _ = translate("--json", stdin="one\nz\u00fc\u2028\n".encode())
    first, second = map(json.loads, output.split("\n")[:-1])
    assert code == 0
    assert (first["text"], first["model"], first["truncated"]) == ("ONE", "shout", False)
    assert first["hypotheses"][0]["finish_reason"] == "stop"
    assert second["text"] == "Z\u00fc\u2028"


def test_lines_keep_their_order_and_their_ends(translate: Run) -> None:
    lines = [f"line {i}" if i % 7 else "" for i in range(1000)]
    code, output, _ = translate(stdin="\r\n".join(lines).encode())
    assert code == 0
    assert output == "\r\n".join(lines).upper() + "\n"
    assert translate(stdin=b"") == (0, "", "")


def test_input_is_read_as_it_is_needed(server: Any, engine: Any) -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield f"line {read}"

    def first_of(texts: Iterator[str]) -> str:
        batches = cli_translate._batches(texts, 4)
        with cli_translate.ThreadPoolExecutor(4) as pool, cli_translate.Client(server.address) as client:
            translations = cli_translate._translate_in_order(
                client, pool, batches, cli_translate.TranslateOptions()
            )
            return next(translations).text

    assert first_of(endless()) == "LINE 1"
    assert read <= 4 * (cli_translate._CALLS_IN_FLIGHT + 1)


def test_a_cut_translation_is_not_passed_over_in_silence(translate: Run, engine: Any) -> None:
    engine.finish_reason = FinishReason.LENGTH
    code, output, errors = translate(stdin=b"\nx\ny\n")
    assert (code, output) == (0, "\nX\nY\n")
    assert errors == "dragoman: warning: 2 translations were cut, the first of text 2\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["translate", "x", "--beam-size", "many"], "--beam-size"),
        (["translate", "x", "--bean-size", "4"], "--bean-size"),
        (["translate", "x", "y"], "y"),
        (["translate", "x", "--beam-size", "-1"], "cannot be sent"),
        (["translate", "x", "--endpoint", "127.0.0.1:9", "--timeout", "2"], "127.0.0.1:9"),
        (["tranlsate", "x"], "'tranlsate'"),
        (["--nonsense"], "--nonsense"),
        (["serve", "--port", "-1"], "--port must be between 0 and 65535"),
        (["serve", "--models", "/nonexistent"], "/nonexistent"),
    ],
)
def test_a_mistake_is_one_line(run: Run, arguments: list[str], words: str) -> None:
    code, output, errors = run(*arguments)
    assert (code, output) == (2, "")
    mistakes = [line for line in errors.splitlines() if " INFO " not in line]
    assert len(mistakes) == 1
    assert mistakes[0].startswith("dragoman: error: ")
    assert words in mistakes[0]


def test_what_the_server_refuses_is_one_line(translate: Run) -> None:
    code, output, errors = translate("x", "--source", "xx")
    assert (code, output) == (2, "")
    assert errors == "dragoman: error: source_language: 'xx' is unknown; there are en\n"
    code, _, errors = translate(stdin=b"ok\n" * 5 + b"x" * 1001)
    assert (code, errors) == (2, "dragoman: error: text 6: 1001 bytes are too many, at most 1000\n")
    code, _, errors = translate(stdin=b"ok\n\xff\n")
    assert code == 2
    assert errors.startswith("dragoman: error: 'utf-8' codec can't decode byte 0xff")


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        ("serve", "grpc_health", "server"),
        ("serve", "onnxruntime", "server"),
        ("train", "torch", "train"),
        ("export", "torch", "train"),
        ("top", "rich", "top"),
    ],
)
def test_a_missing_extra_is_named(command: str, module: str, extra: str) -> None:
    script = f"import sys; sys.modules[{module!r}] = None; from dragoman.cli import main; sys.exit(main())"
    result = subprocess.run(
        [sys.executable, "-c", script, command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert result.returncode == 2
    assert result.stderr == (
        f"dragoman: error: `dragoman {command}` needs {module}, which is not installed: "
        f"pip install 'dragoman[{extra}]'\n"
    )


def test_our_own_import_errors_are_not_hidden() -> None:
    script = "import sys; sys.modules['dragoman_server.serve'] = None; from dragoman.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", script, "serve"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert result.returncode == 1
    assert "ImportError" in result.stderr


def test_help_needs_no_extra() -> None:
    script = "import sys; from dragoman.cli import main; code = main(['--help']); "
    script += "sys.exit(code or any(name in sys.modules for name in ('torch', 'onnxruntime', 'numpy')))"
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert result.returncode == 0
    for command in ("toy", "train", "evaluate", "export", "inspect", "serve", "translate"):
        assert command in result.stdout


def test_flags_are_the_fields(run: Run) -> None:
    code, output, _ = run("translate", "--help")
    assert code == 0
    for flag in ("--source", "--target", "--model", "--beam-size", "--n-best", "--length-penalty", "--json"):
        assert flag in output
    _, output, _ = run("serve", "--help")
    for flag in ("--models", "--host", "--port", "--max-queue", "--max-texts", "--drain-seconds", "--device"):
        assert flag in output


def test_version(run: Run) -> None:
    code, output, _ = run("--version")
    assert code == 0
    assert output.strip()


def test_a_reader_that_is_gone_ends_the_command_quietly(server: Any) -> None:
    script = "import sys; from dragoman.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "translate", "--endpoint", server.address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(b"line\n" * 5000, timeout=30)
    assert (process.returncode, errors) == (141, b"")


def test_a_token_may_come_from_a_file(run: Run, translate: Run, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("two words\n")
    wrong = (2, "", "dragoman: error: a token is one word of ASCII")
    for arguments in (
        ["translate", "x"],
        ["models", "list"],
        ["models", "load", "x", "--admin", "127.0.0.1:1"],
    ):
        code, output, error = run(*arguments, "--token-file", str(file))
        assert (code, output, error[: len(wrong[2])]) == wrong
    file.write_text("secret\n")
    assert translate("x", "--token-file", str(file)) == (0, "X\n", "")
