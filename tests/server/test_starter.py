"""The starter: found where it should be, small, licensed, and translating by default."""

import os
from pathlib import Path

import pytest

from dragoman_server import starter
from dragoman_server.bundle import Bundle
from dragoman_server.config import ServerConfig
from dragoman_server.errors import BundleError

ROOT = Path(__file__).parents[2]
STARTER = ROOT / "starter" / "en-de" / "1"


def test_it_is_served_where_there_are_no_other_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ServerConfig().models == ROOT / "starter"
    (tmp_path / "models").mkdir()
    assert ServerConfig().models == Path("models")


def test_it_is_small_and_says_what_it_was_trained_on() -> None:
    files = list(STARTER.iterdir())
    assert sum(file.stat().st_size for file in files) <= 20_000_000
    manifest = Bundle.open(STARTER).manifest
    assert (manifest.name, manifest.source_languages, manifest.target_languages) == (
        "en-de",
        ("en",),
        ("de",),
    )
    assert manifest.licence == "CC-BY 2.0"
    for text in (manifest.provenance, (STARTER / "MODEL_CARD.md").read_text(), (ROOT / "NOTICE").read_text()):
        assert "www.manythings.org/anki" in text
        assert "tatoeba.org" in text
    assert all(gate.passed for gate in manifest.gates.values())


def test_only_an_installed_bundle_may_have_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As uv installs it: every file is a link to its cache."""
    copy = tmp_path / "starter_models" / "en-de" / "1"
    copy.mkdir(parents=True)
    cache = tmp_path / "cache"
    cache.mkdir()
    for file in STARTER.iterdir():
        (cache / file.name).write_bytes(file.read_bytes())
        os.link(cache / file.name, copy / file.name)
    with pytest.raises(BundleError, match="must be a plain file of its own"):
        Bundle.open(copy)
    monkeypatch.setattr(starter, "_PLACES", (tmp_path / "starter_models", starter._PLACES[1]))
    bundle = Bundle.open(copy)
    assert bundle.read("tokenizer.spm") == (STARTER / "tokenizer.spm").read_bytes()
