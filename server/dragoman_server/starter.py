"""The small model that comes with Dragoman: a first translation needs nothing else."""

from __future__ import annotations

from pathlib import Path

__all__ = ["default_models", "is_installed"]

_MODELS = Path("models")
_PACKAGE = Path(__file__).resolve().parent
# In an installed package, and at the top of a checkout.
_PLACES = (_PACKAGE / "starter_models", _PACKAGE.parent.parent / "starter")


def default_models() -> Path:
    """`./models`, or, where there is no such directory, that of the starter."""
    if _MODELS.is_dir():
        return _MODELS
    return next((place for place in _PLACES if place.is_dir()), _MODELS)


def is_installed(path: Path) -> bool:
    """Whether `path` is in the package: as much to be trusted as the code beside it."""
    return path.resolve().is_relative_to(_PLACES[0])
