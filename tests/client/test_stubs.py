from __future__ import annotations

import ast
import re
from pathlib import Path

import grpc_tools.protoc
import pytest

ROOT = Path(__file__).parents[2]
STUBS = ROOT / "client/dragoman/v1"


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stubs as the generator at hand makes them."""
    out = tmp_path_factory.mktemp("stubs")
    arguments = ["protoc", f"-I{ROOT / 'protos'}", *(f"--{kind}_out={out}" for kind in ("python", "pyi"))]
    arguments += [f"--grpc_python_out={out}"]
    arguments += map(str, (ROOT / "protos/dragoman/v1").glob("*.proto"))
    assert grpc_tools.protoc.main(arguments) == 0
    return out / "dragoman/v1"


def longest_literal(file: Path) -> bytes:
    """The serialised descriptor, which is everything that the definition says but its comments."""
    literals = (
        node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)
    )
    return max((value for value in literals if isinstance(value, bytes)), key=len)


def names(file: Path) -> list[str]:
    return sorted(re.findall(r"(?:class|def) (\w+)|'(/dragoman[\w./]+)'|^ +(\w+): ", file.read_text(), re.M))


# Generators differ in how they write the same definition; what they define must be the same.
@pytest.mark.parametrize("service", ["translation", "admin"])
def test_stubs_are_made_of_the_definition(service: str, generated: Path) -> None:
    name = f"{service}_pb2.py"
    assert longest_literal(STUBS / name) == longest_literal(generated / name), "run scripts/generate_stubs.sh"
    for name in (f"{service}_pb2.pyi", f"{service}_pb2_grpc.py"):
        assert names(STUBS / name) == names(generated / name), "run scripts/generate_stubs.sh"
