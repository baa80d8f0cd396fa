"""The `dragoman` command. A part is imported only when its command is called.

A user's mistake ends in one line on standard error and exit code 2.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError
from cyclopts.exceptions import UnknownCommandError

from dragoman.errors import DragomanError

__all__ = ["main"]

# What a shell reports of a command that SIGPIPE ended.
_EXIT_BROKEN_PIPE = 141
# Likewise SIGINT.
_EXIT_INTERRUPTED = 130
_EXIT_MISTAKE = 2


def _version() -> str:
    try:
        return importlib.metadata.version("dragoman")
    except importlib.metadata.PackageNotFoundError:
        return "unknown: dragoman is not installed"


_app = App(
    name="dragoman",
    help="Train, export, serve, call and load test machine translation.",
    version=_version,
    exit_on_error=False,
    print_error=False,
    result_action="return_value",
)
# The help stands here because asking the commands themselves would import them.
_app.command("dragoman_model.cli_toy:toy", name="toy", help="Write a toy corpus.")
_app.command("dragoman_model.cli_train:train", name="train", help="Train a model on parallel text.")
_app.command(
    "dragoman_model.cli_evaluate:evaluate", name="evaluate", help="Score a model with BLEU and chrF."
)
_app.command("dragoman_export.cli:export", name="export", help="Export a checkpoint to a bundle.")
_app.command("dragoman_server.cli_inspect:inspect", name="inspect", help="Show what a bundle is.")
_app.command("dragoman_server.serve:serve", name="serve", help="Serve bundles over gRPC.")
_app.command("dragoman_server.cli_token:token", name="token", help="Make a token for a server's callers.")
_app.command("dragoman.cli_translate:translate", name="translate", help="Translate text with a server.")
_app.command("dragoman.cli_models:app", name="models", help="List, load and roll out a server's models.")
_app.command("dragoman.cli_health:health", name="health", help="Ask a server whether it is serving.")
_app.command("dragoman_loadtest.top.cli:top", name="top", help="Watch a running server in the terminal.")
_app.command("dragoman_loadtest.cli:app", name="loadtest", help="Load test a server.")

# The extra that installs what a command needs; the others need the base install alone.
_EXTRAS = {
    "toy": "train",
    "train": "train",
    "evaluate": "train",
    "export": "train",
    "inspect": "server",
    "serve": "server",
    "token": "server",
    "top": "top",
    "loadtest": "loadtest",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What follows `dragoman` on the command line; by default that of this process.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _app(words)
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes standard output once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except UnknownCommandError:
        return _fail(f"there is no command {words[0]!r}; `dragoman --help` lists them")
    except ImportError as error:
        return _fail(_missing_extra(error, words[0]))
    except (CycloptsError, DragomanError, ValueError, OSError) as error:
        return _fail(str(error) or type(error).__name__)
    return code if isinstance(code, int) else 0


def _fail(message: str) -> int:
    sys.stderr.write(f"dragoman: error: {' '.join(message.split())}\n")
    return _EXIT_MISTAKE


def _missing_extra(error: ImportError, command: str) -> str:
    """Which extra to install.

    Raises:
        ImportError: nothing is missing that an extra would install: the fault is ours.
    """
    cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
    module = (cause.name or "").partition(".")[0]
    if not module or module.startswith("dragoman") or command not in _EXTRAS:
        raise error
    return (
        f"`dragoman {command}` needs {module}, which is not installed: "
        f"pip install 'dragoman[{_EXTRAS[command]}]'"
    )
