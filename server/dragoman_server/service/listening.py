"""How servers listen: their address, whom they let in, and how long a connection lasts."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import grpc.aio

from dragoman_server.service.authentication import Authentication

__all__ = ["Listener"]

_CLIENT_PING_SECONDS = 5
_CLOSING_SECONDS = 600
"""How long the calls of an aged connection may take to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """An address and what holds of all connections to it."""

    host: str = "127.0.0.1"
    port: int = 0
    """0 for any free one."""
    keepalive_seconds: float = 2.0
    """How often a silent client is asked for a sign of life, and how long it may take."""
    max_connection_calls: int = 512
    """Calls in progress on one connection."""
    max_connection_age_seconds: float = 0.0
    """After which clients connect anew; 0 for never."""
    credentials: grpc.ServerCredentials | None = None
    """Of TLS; `None` for plaintext."""
    authentication: Authentication | None = None
    """`None` lets everybody in."""

    def listen(
        self, interceptors: Sequence[grpc.aio.ServerInterceptor], max_message_bytes: int
    ) -> tuple[grpc.aio.Server, str]:
        """A server with an address of its own, not started; and HOST:PORT as it is.

        Args:
            interceptors: To be asked after the authentication, in this order.
            max_message_bytes: Of a request.

        Raises:
            OSError: the address cannot be listened on.
        """
        _require_free(self.host, self.port)
        first = [] if self.authentication is None else [self.authentication]
        options = [*self._options(), ("grpc.max_receive_message_length", max_message_bytes)]
        server = grpc.aio.server(interceptors=[*first, *interceptors], options=options)
        # An IPv6 address has colons of its own.
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.credentials is None:
            port = server.add_insecure_port(f"{host}:{self.port}")
        else:
            port = server.add_secure_port(f"{host}:{self.port}", self.credentials)
        return server, f"{host}:{port}"

    def _options(self) -> list[tuple[str, int]]:
        keepalive = round(self.keepalive_seconds * 1000)
        options = [
            # Two servers on one port would share its connections in silence.
            ("grpc.so_reuseport", 0),
            ("grpc.keepalive_time_ms", keepalive),
            ("grpc.keepalive_timeout_ms", keepalive),
            # Without this a client that stands still is waited for 60 s whatever the two above say.
            ("grpc.http2.ping_timeout_ms", keepalive),
            # Without it a client that takes its calls back at once fills the line that all callers stand in.
            ("grpc.max_concurrent_streams", self.max_connection_calls),
            # Clients ask for signs of life, too; by default more than one in five minutes is an offence.
            ("grpc.http2.min_ping_interval_without_data_ms", _CLIENT_PING_SECONDS * 1000),
        ]
        if self.max_connection_age_seconds:
            options += [
                ("grpc.max_connection_age_ms", round(self.max_connection_age_seconds * 1000)),
                ("grpc.max_connection_age_grace_ms", _CLOSING_SECONDS * 1000),
            ]
        return options


def _require_free(host: str, port: int) -> None:
    """Bind once to learn the reason where it fails: gRPC says only that it does, and logs lines of its own.

    Raises:
        OSError: the address cannot be listened on.
    """
    try:
        [(family, kind, _, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from error
