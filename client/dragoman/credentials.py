"""What a client proves itself with, and whom it trusts."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Self

import grpc

__all__ = ["Credentials"]

_PREFIX = "DRAGOMAN_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Of a connection. By default the environment says each field: DRAGOMAN_TOKEN, DRAGOMAN_TLS and so on.

    Raises:
        ValueError: a certificate without its key, or the other way round; a token with a space, a line break
            or other characters that none has.
    """

    token: str = field(default="", repr=False)
    """Sent with every call, as `authorization: Bearer`."""
    tls: bool = False
    """Whether the connection is encrypted; it is, too, where one of the files below is given."""
    ca: Path | None = None
    """Certificates, in PEM, of who signs the server's; by default those that gRPC brings along."""
    certificate: Path | None = None
    """The client's own certificate chain, in PEM, where the server asks for one."""
    key: Path | None = None
    """Its private key, in PEM."""

    def __post_init__(self) -> None:
        if (self.certificate is None) is not (self.key is None):
            raise ValueError("a client certificate and its key belong together; give both or neither")
        if not all("!" <= char <= "~" for char in self.token):
            # The token itself must not get into a message.
            raise ValueError("a token is one word of ASCII; this one has a space, a line break or the like")

    @classmethod
    def from_environment(cls, token_file: Path | None = None) -> Self:
        """What the environment says.

        Args:
            token_file: Holds the token instead of DRAGOMAN_TOKEN.

        Raises:
            ValueError: it gives a certificate without its key, or the other way round; the token is none.
            OSError: `token_file` cannot be read.
        """
        said = {one.name: os.environ.get(_PREFIX + one.name.upper(), "") for one in fields(cls)}
        ca, certificate, key = (
            Path(said[name]) if said[name] else None for name in ("ca", "certificate", "key")
        )
        tls = said["tls"] not in ("", "0")
        token = said["token"]
        if token_file is not None:
            token = token_file.read_text(encoding="utf-8").strip()
            if not token:
                raise ValueError(f"{token_file} holds no token; `dragoman token` makes one")
        return cls(token=token, tls=tls, ca=ca, certificate=certificate, key=key)

    def of_channel(self) -> grpc.ChannelCredentials | None:
        """For a channel; `None` for plaintext.

        Raises:
            OSError: a file cannot be read.
        """
        files = (self.ca, self.key, self.certificate)
        if not self.tls and not any(files):
            return None
        ca, key, certificate = (None if file is None else file.read_bytes() for file in files)
        return grpc.ssl_channel_credentials(ca, key, certificate)
