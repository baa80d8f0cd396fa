"""Who may import what: the table of ARCHITECTURE.md."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("dragoman", "dragoman_server", "dragoman_export", "dragoman_model", "dragoman_loadtest")
# Of the server, training may use what needs no runtime.
RUNTIME_FREE = (
    "dragoman_server.tokenizer",
    "dragoman_server.special_ids",
    "dragoman_server.languages",
    "dragoman_server.engine.messages",
)
IN_PROCESS = ("dragoman_server.config", "dragoman_server.loading", "dragoman_server.metrics")

FORBIDDEN = {
    "client": ("torch", "lightning", "onnx", "onnxruntime", "numpy", "opentelemetry", *OURS[1:]),
    "server": (
        *("torch", "lightning", "onnx", "onnxscript"),
        *("dragoman_model", "dragoman_export", "dragoman_loadtest"),
    ),
    "loadtest": ("torch", "lightning", "onnx", "onnxruntime", "opentelemetry", *OURS[1:4]),
    "export": ("lightning", "onnxruntime", "grpc", "opentelemetry"),
    "model": ("onnx", "onnxruntime", "grpc", "opentelemetry", "dragoman_export"),
}
# The exceptions, each with the reason in ARCHITECTURE.md.
ONLY_IN = {
    "onnxruntime": "dragoman_server/engine/onnx_",
    "grpc": "dragoman_server/service/",
    "opentelemetry": "dragoman_server/service/tracing.py",
    "dragoman": "dragoman_server/service/",
}


def imports(file: Path) -> set[str]:
    """Full names of all modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_a_folder_imports_nothing_it_must_not(folder: str) -> None:
    for file in files(folder):
        wrong = {name for name in imports(file) if name.split(".")[0] in FORBIDDEN[folder]}
        assert not wrong, f"{file.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("package", ONLY_IN)
def test_the_server_keeps_a_package_in_its_place(package: str) -> None:
    users = [file for file in files("server") if package in {name.split(".")[0] for name in imports(file)}]
    assert users
    for file in users:
        assert ONLY_IN[package] in file.as_posix(), f"{file.relative_to(ROOT)} imports {package}"


def test_the_load_generator_knows_grpc_in_one_module() -> None:
    users = [file.name for file in files("loadtest") if {"grpc", "dragoman.v1"} & _packages(file)]
    assert users == ["wire.py"]


def _packages(file: Path) -> set[str]:
    names = imports(file)
    return {name.split(".")[0] for name in names} | {".".join(name.split(".")[:2]) for name in names}


def test_training_uses_only_what_is_free_of_the_runtime() -> None:
    for file in files("model"):
        allowed = RUNTIME_FREE + (IN_PROCESS if file.name == "cli_evaluate.py" else ())
        for name in imports(file):
            if name.startswith("dragoman_server"):
                assert name in allowed, f"{file.relative_to(ROOT)} imports {name}"
