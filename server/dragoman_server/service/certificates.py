"""TLS: certificates that can be renewed while the server runs."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import Any

import grpc

from dragoman_server.service.watched_files import WatchedFiles

__all__ = ["server_credentials"]

_log = logging.getLogger(__name__)


def server_credentials(certificate: Path, key: Path, client_ca: Path | None) -> grpc.ServerCredentials:
    """Credentials of a server; each new connection gets the certificate that the files hold then.

    Args:
        certificate: The chain, in PEM, the server's own certificate first.
        key: Its private key, in PEM.
        client_ca: Who signs the certificates that clients must have, in PEM; `None`: they need none.

    Raises:
        ValueError: a file is not what it should be, or the key is another certificate's.
        OSError: a file cannot be read.
    """
    files = WatchedFiles(*(path for path in (certificate, key, client_ca) if path is not None))

    def renewed() -> Any:  # `None`, which the stubs do not know, keeps the last one
        if not files.changed():
            return None
        try:
            configuration = _configuration(certificate, key, client_ca)
        except (OSError, ValueError) as error:
            # Two files are not replaced at once; whatever is changed next is looked at again.
            _log.error("the certificate stays as it was: %s", error)
            return None
        _log.info("new certificate, from %s", certificate)
        return configuration

    first = _configuration(certificate, key, client_ca)
    return grpc.dynamic_ssl_server_credentials(first, renewed, client_ca is not None)


def _configuration(
    certificate: Path, key: Path, client_ca: Path | None
) -> grpc.ServerCertificateConfiguration:
    chain, secret = certificate.read_bytes(), key.read_bytes()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password OpenSSL would ask for one at the terminal, and wait.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        reason = error.reason or "the key may be encrypted, which it must not be"
        raise ValueError(f"{certificate} and {key} are no certificate and its key: {reason}") from error
    if (certificate.read_bytes(), key.read_bytes()) != (chain, secret):
        raise ValueError(f"{certificate} or {key} changed while they were read")
    roots = None
    if client_ca is not None:
        roots = client_ca.read_bytes()
        try:
            context.load_verify_locations(client_ca)
        except ssl.SSLError as error:
            raise ValueError(f"{client_ca} holds no certificate: {error.reason}") from error
    return grpc.ssl_server_certificate_configuration([(secret, chain)], roots)
