"""No pretending: whatever CUDA lacks is named, and nothing runs on the CPU instead."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

from dragoman.cli import main
from dragoman_server.config import ServerConfig
from dragoman_server.engine import onnx_cuda
from dragoman_server.engine.onnx_sessions import session
from dragoman_server.errors import BundleError, DeviceError
from dragoman_server.loading import load
from dragoman_server.metrics import ServerMetrics

[STARTER] = (Path(__file__).parent.parent.parent / "starter").glob("*/*")
INSTALL = "pip uninstall --yes onnxruntime onnxruntime-gpu && pip install 'dragoman[cuda]'"


@pytest.fixture
def gpu_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package for GPUs were installed, in place of the one for CPUs."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load something"))
    versions = {"onnxruntime-gpu": "1.31.1"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)


class Driver:
    """libcuda.so.1, in so far as it is asked."""

    def __init__(self, version: int = 13000, gpus: int = 1, error: int = 0) -> None:
        self.version, self.gpus, self.error = version, gpus, error

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.error

    def cuDeviceGetCount(self, count: object) -> int:  # noqa: N802
        count._obj.value = self.gpus
        return 0

    def cuDriverGetVersion(self, version: object) -> int:  # noqa: N802
        version._obj.value = self.version
        return 0

    def cuGetErrorString(self, error: int, text: object) -> int:  # noqa: N802
        text._obj.value = b"no CUDA-capable device is detected"
        return 0

    def cuDeviceGetName(self, name: ctypes.Array[ctypes.c_char], size: int, device: int) -> int:  # noqa: N802
        name.value = b"NVIDIA H100 80GB HBM3"
        return self.error


def loader(driver: Driver | None, missing: str = "") -> Callable[..., object]:
    def load(name: str, mode: int = 0) -> object:
        if name == "libcuda.so.1" and driver is not None:
            return driver
        if name.endswith("libonnxruntime_providers_cuda.so") and not missing:
            return SimpleNamespace()
        if name.endswith("libonnxruntime_providers_shared.so"):
            return SimpleNamespace()
        raise OSError(f"{missing or name}: cannot open shared object file: No such file or directory")

    return load


def test_serve_with_the_cpu_package_names_the_package(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--device", "cuda"]) == 2
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err == (
        "dragoman: error: --device cuda needs onnxruntime-gpu; what is installed here is onnxruntime "
        f"{onnxruntime.__version__}, which runs on the CPU alone; {INSTALL}\n"
    )


def test_a_session_does_not_fall_back_to_the_cpu() -> None:
    graph = (STARTER / "encoder.int8.onnx").read_bytes()
    with (
        pytest.raises(DeviceError, match="took CPUExecutionProvider instead of CUDAExecutionProvider"),
        pytest.warns(UserWarning, match="not in available provider names"),
    ):
        session(graph, "cuda", threads=1)


@pytest.mark.usefixtures("gpu_package")
@pytest.mark.parametrize(
    ("driver", "missing", "said"),
    [
        (None, "", "needs the driver of an NVIDIA GPU, which is not here (libcuda.so.1: cannot open"),
        (Driver(error=100), "", "does not start: no CUDA-capable device is detected (CUDA error 100)"),
        (Driver(gpus=0), "", "finds no GPU; is CUDA_VISIBLE_DEVICES empty?"),
        (Driver(version=12080), "", "goes up to CUDA 12, and onnxruntime-gpu"),
        (Driver(), "libcudnn.so.9", "a library is missing: libcudnn.so.9: cannot open"),
    ],
    ids=["no driver", "broken driver", "no GPU", "old driver", "no cuDNN"],
)
def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    driver: Driver | None,
    missing: str,
    said: str,
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", loader(driver, missing))
    with pytest.raises(DeviceError) as caught:
        onnx_cuda.require_cuda()
    assert said in str(caught.value)
    assert capfd.readouterr().out == ""


@pytest.mark.usefixtures("gpu_package")
def test_two_packages_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "1.31.1")
    with pytest.raises(DeviceError, match="both installed, each with files of the other"):
        onnx_cuda.require_cuda()


@pytest.mark.usefixtures("gpu_package")
def test_with_everything_there_nothing_is_said_but_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", loader(Driver()))
    onnx_cuda.require_cuda()
    assert onnx_cuda.cuda_device() == "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize("precision", ["auto", "fp32", "fp16"])
def test_a_bundle_without_fp16_is_refused_on_cuda(precision: str) -> None:
    said = (
        "cuda runs fp16 alone; .* has int8, --precision says .*; `dragoman export --precision fp16` makes it"
    )
    with pytest.raises(BundleError, match=re.escape(said).replace(r"\.\*", ".*")):
        load(STARTER, ServerConfig(device="cuda", precision=precision), ServerMetrics())


def test_there_is_one_worker_on_cuda() -> None:
    with pytest.raises(ValueError, match="--workers must be 1 on cuda, not 2"):
        ServerConfig(device="cuda", workers=2)
