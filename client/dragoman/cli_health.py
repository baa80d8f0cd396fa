"""`dragoman health`: whether a server says SERVING, for probes and scripts."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from dragoman._channel import Connection, typed_errors
from dragoman.credentials import Credentials
from dragoman.errors import DragomanError
from dragoman.options import DEFAULT_ENDPOINT

__all__ = ["health"]

_TIMEOUT = 5.0
_NOT_SERVING = 1


def health(
    service: str = "",
    /,
    *,
    endpoint: str = DEFAULT_ENDPOINT,
    timeout: float = _TIMEOUT,
    token_file: Path | None = None,
    json: bool = False,
) -> int:
    """Ask a server whether it takes calls: SERVING or not.

    Args:
        service: Name of a model; by default the server as a whole is meant.
        endpoint: HOST:PORT of the server.
        timeout: Seconds that the answer may take.
        token_file: File with the token to send; by default DRAGOMAN_TOKEN says it.
        json: Print JSON.

    Returns:
        The exit code: 0 where it is SERVING, 1 where it is not, does not know the name, or does not answer.
    """
    if "," in endpoint:
        raise ValueError(f"--endpoint {endpoint} names several servers, of which one would answer; ask each")
    credentials = Credentials.from_environment(token_file)
    with _HealthClient(endpoint, credentials, watches_health=False) as client:
        try:
            status = client.check(service, timeout)
        except DragomanError as error:
            reason = " ".join(str(error).split())
            sys.stderr.write(f"dragoman: error: {endpoint} does not say whether it is serving: {reason}\n")
            return _NOT_SERVING
    name = HealthCheckResponse.ServingStatus.Name(status)
    sys.stdout.write((json_format.dumps({"status": name}) if json else name) + "\n")
    return 0 if status == HealthCheckResponse.SERVING else _NOT_SERVING


class _HealthClient(Connection):
    """Asks once."""

    def check(self, service: str, timeout: float) -> int:
        """The status of a service.

        Raises:
            DragomanError: it is unknown, or there is no answer.
        """
        request = HealthCheckRequest(service=service)
        with typed_errors():
            reply = HealthStub(self._channel).Check(request, timeout=timeout, metadata=self._metadata)
        return int(reply.status)
