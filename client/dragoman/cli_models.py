"""`dragoman models`: what a server serves, and which versions it is to serve."""

from __future__ import annotations

import dataclasses
import json as json_format
import sys
from collections.abc import Sequence
from pathlib import Path

from cyclopts import App

from dragoman.admin_client import DEFAULT_ADMIN_TIMEOUT, AdminClient
from dragoman.client import Client
from dragoman.credentials import Credentials
from dragoman.options import DEFAULT_ENDPOINT, DEFAULT_TIMEOUT
from dragoman.results import ModelSummary

__all__ = ["app", "list_models", "load", "rollout", "unload"]

app = App(name="models", help="List, load, unload and roll out the models of a running server.")


@app.command(name="list")
def list_models(
    *,
    endpoint: str = DEFAULT_ENDPOINT,
    timeout: float = DEFAULT_TIMEOUT,
    token_file: Path | None = None,
    json: bool = False,
) -> None:
    """List the models that a server serves, with their versions and languages.

    Args:
        endpoint: HOST:PORT of the server.
        timeout: Seconds that the call may take.
        token_file: File with the token to send; by default DRAGOMAN_TOKEN says it.
        json: Print a JSON list.
    """
    with Client(endpoint, timeout=timeout, credentials=Credentials.from_environment(token_file)) as client:
        models = client.models()
    if json:
        sys.stdout.write(json_format.dumps([dataclasses.asdict(model) for model in models]) + "\n")
    else:
        sys.stdout.writelines(_line(model) for model in models)


@app.command
def rollout(
    name: str,
    version: str,
    /,
    *,
    admin: str,
    timeout: float = DEFAULT_ADMIN_TIMEOUT,
    token_file: Path | None = None,
    json: bool = False,
) -> None:
    """Serve one version of a model, newer or older, in place of the one served; no call fails.

    Args:
        name: Of the model, NAME/ in the server's directory.
        version: NAME/VERSION/ there.
        admin: HOST:PORT of the administration, which `dragoman serve --admin-port` opens.
        timeout: Seconds to wait for it.
        token_file: File with the token to send; by default DRAGOMAN_TOKEN says it.
        json: Print JSON.
    """
    with AdminClient(admin, timeout=timeout, credentials=Credentials.from_environment(token_file)) as client:
        _print("serving", client.roll_out(name, version), json)


@app.command
def load(
    name: str,
    /,
    *,
    admin: str,
    timeout: float = DEFAULT_ADMIN_TIMEOUT,
    token_file: Path | None = None,
    json: bool = False,
) -> None:
    """Serve the newest version of a model.

    Args:
        name: Of the model, NAME/ in the server's directory.
        admin: HOST:PORT of the administration, which `dragoman serve --admin-port` opens.
        timeout: Seconds to wait for it.
        token_file: File with the token to send; by default DRAGOMAN_TOKEN says it.
        json: Print JSON.
    """
    with AdminClient(admin, timeout=timeout, credentials=Credentials.from_environment(token_file)) as client:
        _print("serving", client.load(name), json)


@app.command
def unload(
    name: str,
    /,
    *,
    admin: str,
    timeout: float = DEFAULT_ADMIN_TIMEOUT,
    token_file: Path | None = None,
    json: bool = False,
) -> None:
    """Serve a model no longer; the calls that it has begun are finished.

    Args:
        name: Of the model.
        admin: HOST:PORT of the administration, which `dragoman serve --admin-port` opens.
        timeout: Seconds to wait for it.
        token_file: File with the token to send; by default DRAGOMAN_TOKEN says it.
        json: Print JSON.
    """
    with AdminClient(admin, timeout=timeout, credentials=Credentials.from_environment(token_file)) as client:
        _print("unloaded", client.unload(name), json)


def _print(what: str, model: ModelSummary, json: bool) -> None:
    line = json_format.dumps(dataclasses.asdict(model)) if json else f"{what} {model.name} {model.version}"
    sys.stdout.write(line + "\n")


def _line(model: ModelSummary) -> str:
    languages = f"{_listed(model.source_languages)} to {_listed(model.target_languages)}"
    return f"{model.name} {model.version}\t{languages}\n"


def _listed(languages: Sequence[str]) -> str:
    return ", ".join(languages)
