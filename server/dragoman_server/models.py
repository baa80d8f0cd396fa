"""The models a server holds, and which of them a call means."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dragoman_server.drain import CallCounter
from dragoman_server.errors import InvalidRequestError, ModelNotFoundError
from dragoman_server.languages import Direction
from dragoman_server.translator import Translator

__all__ = ["ModelDescription", "ModelTable", "ServedModel", "listed", "quoted"]

# Of a name that a caller sent, in a message back: metadata has no room for more.
_QUOTED = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """What a caller may know of a model."""

    name: str
    version: str
    source_languages: tuple[str, ...]
    target_languages: tuple[str, ...]
    architecture: str
    dimensions: Mapping[str, int]
    precision: str
    device: str
    max_source_tokens: int
    """Per segment, the end-of-sentence token included."""
    max_output_tokens: int
    """Per segment, the end-of-sentence token included."""
    max_queue: int
    """Segments that may wait for a slot."""
    manifest_sha256: str
    provenance: str
    licence: str

    @property
    def first_direction(self) -> Direction:
        """One language pair that it translates."""
        return Direction(self.source_languages[0], self.target_languages[0])


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One version of a model, which translates."""

    description: ModelDescription
    translator: Translator
    calls: CallCounter = field(default_factory=CallCounter, compare=False)
    """Those that hold it: its engine is to outlive them."""


class ModelTable:
    """Finds models by name and language pair; used from the event loop alone.

    A call holds the version that it has found until it ends, whatever takes its place in the table meanwhile.

    Args:
        models: With distinct names.

    Raises:
        ValueError: two models have one name.
    """

    def __init__(self, models: Sequence[ServedModel] = ()) -> None:
        self._models = {model.description.name: model for model in models}
        if len(self._models) != len(models):
            raise ValueError("two models have the same name")

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def put(self, model: ServedModel) -> None:
        """From now on calls find `model` under its name, in place of another version."""
        self._models[model.description.name] = model

    def remove(self, name: str) -> ServedModel:
        """From now on no call finds the model `name`, which is returned.

        Raises:
            ModelNotFoundError: there is none.
        """
        model = self.named(name)
        del self._models[name]
        return model

    @contextlib.contextmanager
    def lease(self, name: str, source: str, target: str) -> Iterator[tuple[ServedModel, Direction]]:
        """What `route` finds, held while the context lasts; arguments and errors are those of `route`."""
        model, direction = self.route(name, source, target)
        with model.calls.call():
            yield model, direction

    def named(self, name: str) -> ServedModel:
        """The model `name`.

        Raises:
            ModelNotFoundError: there is none.
        """
        if name not in self._models:
            raise ModelNotFoundError(f"no model {quoted(name)}; there are {listed(self._models)}")
        return self._models[name]

    def route(self, name: str, source: str, target: str) -> tuple[ServedModel, Direction]:
        """The model that a call means, and the languages.

        Args:
            name: Of a model; empty: the one that translates the language pair.
            source: Language code; empty: the model's own, where it has one only.
            target: The same.

        Raises:
            ModelNotFoundError: no model has that name or translates that pair.
            InvalidRequestError: a language is unknown, or what is left open has several answers.
        """
        candidates = [self.named(name)] if name else list(self)
        _require_known("source_language", source, [m.description.source_languages for m in candidates])
        _require_known("target_language", target, [m.description.target_languages for m in candidates])
        fitting = [model for model in candidates if _translates(model.description, source, target)]
        if not fitting:
            raise ModelNotFoundError(f"no model translates {quoted(source)} to {quoted(target)}")
        if len(fitting) > 1:
            names = listed(model.description.name for model in fitting)
            raise InvalidRequestError("model", f"several models fit: {names}; name one")
        [model] = fitting
        to = _only_choice("target_language", target, model.description.target_languages)
        return model, Direction(
            _only_choice("source_language", source, model.description.source_languages), to
        )


def _translates(description: ModelDescription, source: str, target: str) -> bool:
    return (not source or source in description.source_languages) and (
        not target or target in description.target_languages
    )


def _require_known(field: str, code: str, known: Iterable[tuple[str, ...]]) -> None:
    languages = {language for codes in known for language in codes}
    if code and code not in languages:
        raise InvalidRequestError(field, f"{quoted(code)} is unknown; there are {listed(languages)}")


def _only_choice(field: str, code: str, languages: tuple[str, ...]) -> str:
    """The language meant, where it was given or there is only one."""
    if not code and len(languages) > 1:
        raise InvalidRequestError(field, f"must be one of {listed(languages)}")
    return code or languages[0]


def quoted(name: str) -> str:
    """What a caller sent, for a message back: in quotes, and cut where it is long."""
    return repr(name if len(name) <= _QUOTED else name[:_QUOTED] + "...")


def listed(names: Iterable[str]) -> str:
    """Names in order, separated by commas."""
    return ", ".join(sorted(names)) or "none"
