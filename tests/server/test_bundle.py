"""A bundle is loaded only if it is what its manifest says, to the byte."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman_server.bundle import Bundle, find_bundles
from dragoman_server.cli_inspect import inspect
from dragoman_server.errors import BundleError
from dragoman_server.languages import LanguageTokens
from dragoman_server.manifest import (
    SCHEMA,
    Canary,
    Dimensions,
    FileRecord,
    Gate,
    Graphs,
    Limits,
    Manifest,
    Score,
    Tokenizers,
    sealed,
)
from dragoman_server.special_ids import SpecialIds
from dragoman_server.state_tensor import StateTensor

FILES = {
    "encoder.onnx": b"an encoder",
    "decode_step.onnx": b"a decode step",
    "tokenizer.spm": b"a tokenizer",
    "MODEL_CARD.md": b"# A card",
}
AXES = ("row", "head", "position", "head_dim")
CACHE = StateTensor("self_key_0", "kv_cache", AXES, {"head": 2, "head_dim": 8})

MANIFEST = Manifest(
    name="toy",
    version="3",
    architecture="transformer",
    source_languages=("en",),
    target_languages=("de",),
    dimensions=Dimensions(16, 2, 8, 64, 1, 1, 100, 120, 2, 64),
    special_ids=SpecialIds(pad=0, unk=1, bos=2, eos=3),
    language_tokens=LanguageTokens(),
    limits=Limits(max_source_tokens=64, max_target_tokens=32),
    tokenizers=Tokenizers("tokenizer.spm", "tokenizer.spm"),
    precisions={"fp32": Graphs("encoder.onnx", "decode_step.onnx", (CACHE,))},
    gates={
        "fp32": Gate(
            True,
            *(2, 20, 1e-6, 1e-8, 1e-4, 1.0, 1.0, 1.0),
            {"empty": "same"},
            canaries=(Canary("a", "b", -1.5, 1e-3, 4, 0.6),),
        )
    },
    scores=(Score("BLEU", 30.5, "a test set", "a signature"),),
    provenance="made up",
    licence="CC0-1.0",
    created_by={"dragoman": "0.1.0"},
    files={name: FileRecord(len(data), hashlib.sha256(data).hexdigest()) for name, data in FILES.items()},
)

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "toy" / "3")


def write_bundle(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    (folder / "bundle.json").write_bytes(MANIFEST.to_json())
    return folder


def changed(change: Change) -> bytes:
    document = json.loads(MANIFEST.to_json())
    change(document)
    return sealed(document)


def resealed(document: dict[str, Any]) -> bytes:
    """The text of a manifest, with the hash it should have: what is refused is not refused for that."""
    document.pop("sha256", None)
    return sealed(document)


def test_what_is_written_is_read(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert opened.manifest == MANIFEST
    assert {name: opened.read(name) for name in FILES} == FILES
    assert opened.manifest_sha256 == hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()


@given(name=st.text(max_size=20), value=st.floats(allow_nan=False, allow_infinity=False))
def test_any_text_and_number_survives(name: str, value: float) -> None:
    name = name.encode(errors="ignore").decode()
    manifest = dataclasses.replace(
        MANIFEST, provenance=name, scores=(Score(name, value, name, name),), created_by={name: name}
    )
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m.update(schema=SCHEMA - 1),
            f"schema {SCHEMA - 1} is unknown, this version reads {SCHEMA}:",
        ),
        (
            lambda m: m.update(schema=SCHEMA + 1),
            f"schema {SCHEMA + 1} is unknown, this version reads {SCHEMA}:",
        ),
        (lambda m: m.update(schema=str(SCHEMA)), f"schema '{SCHEMA}' is unknown"),
        (lambda m: m.pop("schema"), "schema None is unknown"),
        (lambda m: m.update(colour="red"), "colour is an unknown key"),
        (lambda m: m["dimensions"].update(d_modal=1), "dimensions.d_modal is an unknown key"),
        (lambda m: m["dimensions"].pop("d_model"), "dimensions.d_model is missing"),
        (lambda m: m["dimensions"].update(d_model=0), "d_model must be at least 1"),
        (lambda m: m["dimensions"].update(d_model=16.0), "dimensions.d_model must be of type int"),
        (lambda m: m["dimensions"].update(d_model=True), "dimensions.d_model must be of type int"),
        (lambda m: m["gates"]["fp32"]["canaries"][0].update(beam_size=0), "beam_size must be at least 1"),
        (lambda m: m["gates"]["fp32"]["canaries"][0].update(length_penalty=-1.0), "out of its range"),
        (lambda m: m["gates"]["fp32"]["canaries"][0].pop("text"), r"canaries\[0\].text is missing"),
        (lambda m: m["limits"].update(max_source_tokens=10**6), "limits must be at most"),
        (lambda m: m.update(architecture="mystery"), "architecture must be one of transformer"),
        (lambda m: m.update(name="../toy"), "'../toy' is no file name"),
        (lambda m: m.update(version="01"), "version must be a positive integer"),
        (lambda m: m.update(version=1), "version must be of type str"),
        (lambda m: m.update(source_languages=[]), "source_languages"),
        (lambda m: m.update(source_languages="en"), "source_languages must be of type list"),
        (lambda m: m["special_ids"].update(eos=2), "never must not contain eos"),
        (lambda m: m["special_ids"].update(eos=1), "pad, unk and eos must be distinct"),
        (lambda m: m["special_ids"].update(bos=1), "bos must not be unk"),
        (lambda m: m["special_ids"].update(never=[100]), "must be below the vocabulary size 100"),
        (lambda m: m["language_tokens"].update(source={"de": 5}), "source must name the languages en"),
        (
            lambda m: m["language_tokens"].update(forced={"de": 100}),
            "forced must be below the vocabulary size",
        ),
        (lambda m: m["special_ids"].update(eos=100), "below the vocabulary size 100"),
        (lambda m: m["tokenizers"].update(source="other.spm"), "no entry for 'other.spm'"),
        (lambda m: m["tokenizers"].update(source="bundle.json"), "no entry for 'bundle.json'"),
        (lambda m: m["files"].update({"a/b": m["files"]["MODEL_CARD.md"]}), "'a/b' is no file name"),
        (
            lambda m: m["files"].update({"../outside": m["files"]["MODEL_CARD.md"]}),
            "'../outside' is no file name",
        ),
        (lambda m: m["precisions"]["fp32"].update(encoder="../encoder.onnx"), "'../encoder.onnx' is no file"),
        (lambda m: m["tokenizers"].update(source="/etc/passwd"), "'/etc/passwd' is no file name"),
        (lambda m: m["files"].update({"..": m["files"]["MODEL_CARD.md"]}), "'..' is no file name"),
        (lambda m: m["files"]["MODEL_CARD.md"].update(sha256="A" * 64), "is no SHA-256"),
        (lambda m: m["files"]["MODEL_CARD.md"].update(bytes=-1), "must not be negative"),
        (lambda m: m.update(precisions={}, gates={}), "precisions must not be empty"),
        (lambda m: m["gates"].update(int8=m["gates"]["fp32"]), "gates must name no others"),
        (
            lambda m: m["precisions"]["fp32"]["state"].append(m["precisions"]["fp32"]["state"][0]),
            "tensor names must be distinct",
        ),
        (
            lambda m: m["precisions"]["fp32"]["state"][0].update(kind="recurrent"),
            r"state\[0\].kind must be one of",
        ),
        (
            lambda m: m["precisions"]["fp32"]["state"][0].update(kind="memory"),
            "needs the axis 'source_position'",
        ),
        (lambda m: m["precisions"]["fp32"]["state"][0].update(axes=["head", *AXES[2:]]), "begin with 'row'"),
        (lambda m: m["precisions"]["fp32"]["state"][0].update(axes=[*AXES, "head"]), "axes must be distinct"),
        (lambda m: m["precisions"]["fp32"]["state"][0].update(sizes={"head": 2}), "sizes must name"),
        (
            lambda m: m["precisions"]["fp32"]["state"][0]["sizes"].update(head=0),
            "every size must be at least 1",
        ),
        (
            lambda m: m["precisions"]["fp32"]["state"][0].update(type="float8"),
            "type must be one of float32, float16, int8",
        ),
        (lambda m: m["scores"][0].update(value="30"), r"scores\[0\].value must be of type float, not str"),
        (lambda m: m["scores"][0].update(value=10**400), r"scores\[0\].value is too large"),
    ],
)
def test_a_manifest_with_a_wrong_field_is_refused(bundle: Path, change: Change, message: str) -> None:
    (bundle / "bundle.json").write_bytes(changed(change))
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(bundle)
    assert "\n" not in str(caught.value)
    assert str(bundle) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'{"schema": NaN}',
        b'{"schema": 1e999}',
        b'{"schema": 2, "schema": 2}',
        b"[" * 10**5,
    ],
)
def test_a_manifest_that_is_no_json_object_is_refused(bundle: Path, text: bytes) -> None:
    (bundle / "bundle.json").write_bytes(text)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        Bundle.open(bundle)


def test_a_key_that_stands_twice_is_refused() -> None:
    text = MANIFEST.to_json().replace(b'"name": "toy",', b'"name": "toy", "name": "toy",')
    with pytest.raises(BundleError, match="a key stands twice"):
        Manifest.from_json(text)


@given(data=st.data())
def test_a_manifest_with_any_value_replaced_is_equal_or_refused(data: st.DataObject) -> None:
    document = json.loads(MANIFEST.to_json())
    node, path = document, []
    while isinstance(node, dict | list) and node:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        path.append((node, key))
        node = node[key]
    parent, key = path[data.draw(st.integers(0, len(path) - 1))]
    parent[key] = data.draw(st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just([]))
    text = resealed(document)
    try:
        parsed = Manifest.from_json(text)
    except BundleError:
        return
    assert parsed.to_json() == text


@pytest.mark.parametrize("change", [lambda m: m.update(licence="MIT"), lambda m: m.update(sha256="0" * 64)])
def test_a_manifest_that_was_changed_by_hand_is_refused(bundle: Path, change: Change) -> None:
    document = json.loads(MANIFEST.to_json())
    change(document)
    (bundle / "bundle.json").write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    with pytest.raises(BundleError, match=r"bundle\.json has been altered since it was written"):
        Bundle.open(bundle)


def remove(folder: Path) -> None:
    (folder / "tokenizer.spm").unlink()


def add(folder: Path) -> None:
    (folder / "extra.bin").touch()


def add_folder(folder: Path) -> None:
    (folder / "extra").mkdir()


def symlink(folder: Path) -> None:
    outside = folder.parent / "outside"
    (folder / "tokenizer.spm").rename(outside)
    (folder / "tokenizer.spm").symlink_to(outside)


def hard_link(folder: Path) -> None:
    (folder.parent / "outside").hardlink_to(folder / "tokenizer.spm")


def pipe(folder: Path) -> None:
    (folder / "tokenizer.spm").unlink()
    os.mkfifo(folder / "tokenizer.spm")


def pipe_for_manifest(folder: Path) -> None:
    (folder / "bundle.json").unlink()
    os.mkfifo(folder / "bundle.json")


def lengthen(folder: Path) -> None:
    (folder / "tokenizer.spm").write_bytes(FILES["tokenizer.spm"] + b"!")


def link_manifest(folder: Path) -> None:
    (folder / "bundle.json").rename(folder.parent / "outside")
    (folder / "bundle.json").symlink_to(folder.parent / "outside")


def blow_up_manifest(folder: Path) -> None:
    os.truncate(folder / "bundle.json", 2**30)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, "tokenizer.spm is missing"),
        (add, "extra.bin does not belong"),
        (add_folder, "extra does not belong"),
        (symlink, "tokenizer.spm must be a plain file"),
        (hard_link, "tokenizer.spm must be a plain file"),
        (pipe, "tokenizer.spm must be a plain file"),
        (pipe_for_manifest, "bundle.json must be a plain file"),
        (lengthen, "tokenizer.spm has 12 bytes, the manifest says 11"),
        (link_manifest, "bundle.json cannot be opened"),
        (blow_up_manifest, "bundle.json has 1073741824 bytes"),
    ],
)
def test_a_directory_that_differs_from_its_manifest_is_refused(
    bundle: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(bundle)
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle)


@pytest.mark.parametrize("damage", [remove, symlink, hard_link, pipe, lengthen])
def test_a_file_that_changes_after_opening_is_not_read(bundle: Path, damage: Callable[[Path], None]) -> None:
    opened = Bundle.open(bundle)
    damage(bundle)
    with pytest.raises(BundleError, match=r"tokenizer\.spm"):
        opened.read("tokenizer.spm")


def test_a_file_with_other_content_of_the_same_size_is_not_read(bundle: Path) -> None:
    (bundle / "tokenizer.spm").write_bytes(b"a tokeniser")
    opened = Bundle.open(bundle)
    with pytest.raises(BundleError, match=r"tokenizer\.spm has been altered"):
        opened.read("tokenizer.spm")


@pytest.mark.parametrize("name", ["bundle.json", "../3/tokenizer.spm", "missing"])
def test_only_files_of_the_manifest_are_read(bundle: Path, name: str) -> None:
    with pytest.raises(BundleError, match="the bundle has no file"):
        Bundle.open(bundle).read(name)


def test_a_linked_directory_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle)
    with pytest.raises(BundleError, match="is no directory that can be opened"):
        Bundle.open(tmp_path / "link")


def test_the_versions_of_each_model_are_found_newest_first(tmp_path: Path) -> None:
    for path in ("a/2", "a/10", "a/9", "b/1", "a/latest", "a/.11-staging", ".hidden/1", "c/notes"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "a" / "12").touch()
    found = find_bundles(tmp_path)
    assert found == {
        "a": {version: tmp_path / "a" / version for version in ("2", "9", "10")},
        "b": {"1": tmp_path / "b" / "1"},
    }
    assert list(found["a"]) == ["10", "9", "2"]


def test_a_bundle_is_found_where_it_is(bundle: Path) -> None:
    assert find_bundles(bundle) == {"toy": {"3": bundle}}


@pytest.mark.parametrize(("root", "message"), [("empty", "no bundle below"), ("missing", "is no directory")])
def test_a_root_without_bundles_is_an_error(tmp_path: Path, root: str, message: str) -> None:
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(BundleError, match=message):
        find_bundles(tmp_path / root)


def test_inspect_shows_what_a_bundle_is(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(bundle)
    shown = capsys.readouterr().out
    for fact in (
        "toy 3",
        "en to de",
        "d_model 16",
        "gate passed",
        "BLEU",
        "30.50",
        "CC0-1.0",
        "encoder.onnx",
    ):
        assert fact in shown
    inspect(bundle, json=True)
    described = json.loads(capsys.readouterr().out)
    assert described.pop("manifest_sha256") == Bundle.open(bundle).manifest_sha256
    written = json.loads((bundle / "bundle.json").read_bytes())
    assert described == {key: value for key, value in written.items() if key != "sha256"}


def test_inspect_refuses_an_altered_file(bundle: Path) -> None:
    (bundle / "encoder.onnx").write_bytes(b"AN ENCODER")
    with pytest.raises(BundleError, match=r"encoder\.onnx has been altered"):
        inspect(bundle)


@pytest.mark.parametrize(
    ("gates", "shown"),
    [({}, "not checked"), ({"fp32": Gate(False, 1, 1, 1.0, 1.0, 1e-4, 0.0, 0.0, 0.0, {})}, "gate FAILED")],
)
def test_inspect_tells_of_a_gate_not_passed(
    bundle: Path, gates: dict[str, Gate], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / "bundle.json").write_bytes(dataclasses.replace(MANIFEST, gates=gates).to_json())
    inspect(bundle)
    assert shown in capsys.readouterr().out
