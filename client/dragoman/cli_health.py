"""`dragoman health`: whether a server, or one model of it, takes calls; for probes that need an exit code."""

from __future__ import annotations

import sys
from pathlib import Path

from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from dragoman._channel import Connection, typed_errors
from dragoman.credentials import Credentials
from dragoman.errors import DeadlineExceeded, NotFound, Unavailable
from dragoman.options import DEFAULT_ENDPOINT

__all__ = ["health"]

_DEFAULT_TIMEOUT = 5.0
_Response = health_pb2.HealthCheckResponse


def health(
    *,
    endpoint: str = DEFAULT_ENDPOINT,
    service: str = "",
    timeout: float = _DEFAULT_TIMEOUT,
    token_file: Path | None = None,
) -> int:
    """Ask a server whether it takes calls; prints SERVING, NOT_SERVING or SERVICE_UNKNOWN.

    Args:
        endpoint: HOST:PORT of the server.
        service: Name of a model or of a gRPC service; by default the server as a whole.
        timeout: Seconds that the answer may take.
        token_file: File with the token to send; by default DRAGOMAN_TOKEN says it.

    Returns:
        The exit code: 0 where the answer is SERVING; 1 where it is another, or does not come.
    """
    if "," in endpoint:
        raise ValueError(f"--endpoint {endpoint} names several servers; ask each of them by itself")
    try:
        with _HealthClient(endpoint, timeout, Credentials.from_environment(token_file)) as client:
            status = client.check(service)
    except (Unavailable, DeadlineExceeded) as error:
        message = " ".join(str(error).split())
        sys.stderr.write(f"dragoman: no server answers at {endpoint}: {message}\n")
        return 1
    sys.stdout.write(f"{_Response.ServingStatus.Name(status)}\n")
    return 0 if status == _Response.SERVING else 1


class _HealthClient(Connection):
    def __init__(self, endpoint: str, timeout: float, credentials: Credentials) -> None:
        # A channel that watches health would send the question to no server but one that is SERVING.
        super().__init__(endpoint, credentials, watches_health=False)
        self._timeout = timeout
        self._stub = HealthStub(self._channel)

    def check(self, service: str) -> int:
        """The answer, a `ServingStatus`."""
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            with typed_errors():
                answer = self._stub.Check(request, timeout=self._timeout, metadata=self._metadata)
        except NotFound:
            return int(_Response.SERVICE_UNKNOWN)
        return int(answer.status)
