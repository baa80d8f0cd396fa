"""The client of Dragoman translation servers.

    with dragoman.Client("127.0.0.1:50051") as client:
        print(client.translate("A dog runs.", source="en", target="de").text)

`AsyncClient` does the same under asyncio, `AdminClient` rolls out models; `dragoman.errors` has the errors
that they raise.
"""

from __future__ import annotations

from dragoman.admin_client import AdminClient
from dragoman.aio_client import AsyncClient, AsyncTranslationStream
from dragoman.client import Client, TranslationStream
from dragoman.credentials import Credentials
from dragoman.errors import (
    Cancelled,
    DeadlineExceeded,
    DragomanError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ServerError,
    Unauthenticated,
    Unavailable,
)
from dragoman.options import TranslateOptions
from dragoman.results import FinishReason, Hypothesis, Limits, Model, ModelSummary, Timing, Translation

__all__ = [
    "AdminClient",
    "AsyncClient",
    "AsyncTranslationStream",
    "Cancelled",
    "Client",
    "Credentials",
    "DeadlineExceeded",
    "DragomanError",
    "FinishReason",
    "Hypothesis",
    "InvalidArgument",
    "Limits",
    "Model",
    "ModelSummary",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "ServerError",
    "Timing",
    "TranslateOptions",
    "Translation",
    "TranslationStream",
    "Unauthenticated",
    "Unavailable",
]
