"""The model that comes with Dragoman, small: a first translation needs nothing else."""

from __future__ import annotations

from pathlib import Path

__all__ = ["default_models"]

_MODELS = Path("models")
_PACKAGE = Path(__file__).resolve().parent
# Within the package in a wheel, at the top in a checkout.
_STARTERS = (_PACKAGE / "starter", _PACKAGE.parent.parent / "starter")


def default_models() -> Path:
    """`./models`, or, where there is no such directory, that of the starter."""
    if _MODELS.is_dir():
        return _MODELS
    return next((starter for starter in _STARTERS if starter.is_dir()), _MODELS)
