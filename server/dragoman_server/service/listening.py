"""Addresses that servers listen on."""

from __future__ import annotations

import socket

import grpc.aio

__all__ = ["OPTIONS", "bind"]

OPTIONS = (
    # Two servers on one port would share its connections in silence.
    ("grpc.so_reuseport", 0),
    # Notice a client that is gone without a word: pings every 30 s, each answered within 10 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
)
"""Of every server here."""


def bind(server: grpc.aio.Server, host: str, port: int) -> str:
    """Have `server` listen on an address of its own.

    Args:
        server: Not started.
        host: Name or number.
        port: 0 for any free one.

    Returns:
        HOST:PORT as it is, the port chosen.

    Raises:
        OSError: the address cannot be listened on.
    """
    _require_free(host, port)
    # An IPv6 address has colons of its own.
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{server.add_insecure_port(f'{host}:{port}')}"


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
