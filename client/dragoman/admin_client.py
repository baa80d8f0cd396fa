"""The client of a server's administration: which versions of its models it holds."""

from __future__ import annotations

from dragoman._channel import CallArguments, Connection, typed_errors
from dragoman._messages import parse_summary
from dragoman.credentials import Credentials
from dragoman.results import ModelSummary
from dragoman.v1 import admin_pb2 as pb
from dragoman.v1.admin_pb2_grpc import AdminServiceStub

__all__ = ["DEFAULT_ADMIN_TIMEOUT", "AdminClient"]

DEFAULT_ADMIN_TIMEOUT = 600.0
"""Seconds: large models load slowly, and the calls of the version that goes are waited for."""


class AdminClient(Connection):
    """Loads, unloads and rolls out models; thread-safe. Use as a context manager, or call `close`.

    Every method raises the errors of `dragoman.errors`: `NotFound` for a model or version that the server's
    directory does not have, `ServerError` with the code FAILED_PRECONDITION for a version that the server
    refuses, with its reason. What was served is served still. An operation goes on in the server where the
    timeout ends the wait for it.

    Args:
        endpoint: HOST:PORT of the administration, which is not that of the translations.
        timeout: Seconds that a call may take.
        credentials: By default what the environment says.

    Raises:
        ValueError: a token would be sent in plaintext to another machine.
        OSError: a certificate cannot be read.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        timeout: float = DEFAULT_ADMIN_TIMEOUT,
        credentials: Credentials | None = None,
    ) -> None:
        # The administration's address answers no health checks.
        super().__init__(endpoint, credentials, watches_health=False)
        self._call: CallArguments = {"timeout": timeout, "metadata": self._metadata}
        self._stub = AdminServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def load(self, name: str) -> ModelSummary:
        """Serve the newest sound version of a model; returns what is served then."""
        with typed_errors():
            response = self._stub.LoadModel(pb.LoadModelRequest(name=name), **self._call)
        return parse_summary(response.model)

    def unload(self, name: str) -> ModelSummary:
        """Serve a model no longer; returns what was served, once its last call has ended."""
        with typed_errors():
            response = self._stub.UnloadModel(pb.UnloadModelRequest(name=name), **self._call)
        return parse_summary(response.model)

    def roll_out(self, name: str, version: str) -> ModelSummary:
        """Serve one version of a model, newer or older; returns once the last call of the other has ended."""
        request = pb.RolloutRequest(name=name, version=version)
        with typed_errors():
            response = self._stub.Rollout(request, **self._call)
        return parse_summary(response.model)
