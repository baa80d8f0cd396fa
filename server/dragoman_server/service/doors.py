"""Where a server can be reached, and what it asks of whoever comes: the configuration as listeners."""

from __future__ import annotations

import grpc

from dragoman_server.config import ServerConfig
from dragoman_server.service.authentication import Authentication
from dragoman_server.service.certificates import server_credentials
from dragoman_server.service.guard import ObserveCall
from dragoman_server.service.listening import Listener
from dragoman_server.service.tokens import TokenFile

__all__ = ["Doors"]


class Doors:
    """The listeners of a server: of its translations, its administration, and its health alone.

    Args:
        config: What the flags say.
        observe: Told of every call that is denied.

    Raises:
        ValueError: a certificate, key or token file is not what it should be.
        OSError: one cannot be read.
    """

    def __init__(self, config: ServerConfig, observe: ObserveCall) -> None:
        tokens = None if config.tokens is None else TokenFile(config.tokens)
        admin_tokens = None if config.admin_tokens is None else TokenFile(config.admin_tokens)
        self.translation = Listener(
            host=config.host,
            port=config.port,
            keepalive_seconds=config.keepalive_seconds,
            max_connection_calls=config.max_connection_calls,
            max_connection_age_seconds=config.max_connection_age_seconds,
            credentials=_credentials(config),
            authentication=(
                None if tokens is None else Authentication(tokens, observe, open_health=config.open_health)
            ),
        )
        self.health = (
            None if config.health_port is None else Listener(host=config.health_host, port=config.health_port)
        )
        """`None` where health is asked for at the port of translations alone."""
        self.admin = None
        """`None` where no administration is asked for."""
        if config.admin_port is not None:
            self.admin = Listener(
                host=config.admin_host,
                port=config.admin_port,
                keepalive_seconds=config.keepalive_seconds,
                max_connection_calls=config.max_connection_calls,
                credentials=_credentials(config),
                authentication=(
                    None if admin_tokens is None else Authentication(admin_tokens, observe, others=tokens)
                ),
            )


def _credentials(config: ServerConfig) -> grpc.ServerCredentials | None:
    """Of TLS, for one listener: gRPC refuses a second one that shares them."""
    if config.tls_certificate is None or config.tls_key is None:
        return None
    return server_credentials(config.tls_certificate, config.tls_key, config.tls_client_ca)
