from __future__ import annotations

from typing import Any

import pytest

from dragoman_server.errors import InvalidRequestError, ModelNotFoundError
from dragoman_server.languages import Direction
from dragoman_server.models import ModelTable


@pytest.fixture
def table(engine: Any, model: Any) -> ModelTable:
    return ModelTable(
        [
            model(engine, "en-de", ("en",), ("de",)),
            model(engine, "de-en", ("de",), ("en",)),
            model(engine, "slavic", ("cs", "sk"), ("en", "pl")),
        ]
    )


@pytest.mark.parametrize(
    ("name", "source", "target", "found", "language"),
    [
        ("en-de", "", "", "en-de", "en"),
        ("", "en", "de", "en-de", "en"),
        ("", "en", "", "en-de", "en"),
        ("", "", "de", "en-de", "en"),
        ("", "sk", "en", "slavic", "sk"),
        ("slavic", "cs", "pl", "slavic", "cs"),
        ("", "", "pl", "", "source_language"),
        ("", "", "", "", "model"),
        ("", "", "en", "", "model"),
        ("slavic", "cs", "", "", "target_language"),
        ("slavic", "", "en", "", "source_language"),
        ("", "xx", "de", "", "source_language"),
        ("en-de", "de", "", "", "source_language"),
        ("en-de", "", "en", "", "target_language"),
    ],
)
def test_routing(table: ModelTable, name: str, source: str, target: str, found: str, language: str) -> None:
    if found:
        model, direction = table.route(name, source, target)
        assert (model.description.name, direction.source) == (found, language)
    else:
        with pytest.raises(InvalidRequestError) as caught:
            table.route(name, source, target)
        assert caught.value.field == language


def test_what_is_not_there_is_not_found(table: ModelTable) -> None:
    with pytest.raises(ModelNotFoundError, match="no model 'xx'; there are de-en, en-de, slavic"):
        table.route("xx", "", "")
    with pytest.raises(ModelNotFoundError, match="no model translates 'cs' to 'de'"):
        table.route("", "cs", "de")
    with pytest.raises(ModelNotFoundError) as caught:
        table.named("x" * 10_000)
    assert len(str(caught.value)) < 200


def test_a_call_keeps_the_version_that_it_has_found(table: ModelTable, engine: Any, model: Any) -> None:
    old, new = table.named("en-de"), model(engine, "en-de", ("en",), ("de",), version="4")
    with table.lease("", "en", "de") as (held, direction):
        table.put(new)
        assert (held, direction) == (old, Direction("en", "de"))
        assert (old.calls.active, new.calls.active) == (1, 0)
        with table.lease("en-de", "", "") as (held, _):
            assert held is new
    assert (old.calls.active, new.calls.active) == (0, 0)
    assert [model.description.name for model in table] == ["en-de", "de-en", "slavic"]
    assert table.remove("en-de") is new
    for attempt in (table.remove, table.named):
        with pytest.raises(ModelNotFoundError, match="no model 'en-de'; there are de-en, slavic"):
            attempt("en-de")


def test_names_are_distinct(engine: Any, model: Any) -> None:
    with pytest.raises(ValueError, match="same name"):
        ModelTable([model(engine), model(engine)])
