"""Whether networks can run on CUDA here, and what is missing where they cannot.

ONNX Runtime by itself goes on with the CPU, in silence, where its package, the driver or a library is
missing.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
from importlib import metadata
from pathlib import Path

import onnxruntime

from dragoman_server.errors import DeviceError

__all__ = ["cuda_device", "require_cuda"]

_INSTALL = "pip uninstall --yes onnxruntime onnxruntime-gpu && pip install 'dragoman[cuda]'"
_DRIVER = "libcuda.so.1"


def require_cuda() -> None:
    """Load what CUDA needs.

    Raises:
        DeviceError: something is missing; says what, and how to get it.
    """
    _require_package()
    _require_driver()
    _require_libraries()


def cuda_device() -> str:
    """The name of the GPU that is used, the first one, as its driver has it."""
    name = ctypes.create_string_buffer(256)
    driver = ctypes.CDLL(_DRIVER)
    found = driver.cuInit(0) or driver.cuDeviceGetName(name, len(name), 0)
    return "unknown" if found else name.value.decode(errors="replace")


def _require_package() -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise DeviceError(
            "--device cuda needs onnxruntime-gpu; what is installed here is onnxruntime "
            f"{onnxruntime.__version__}, which runs on the CPU alone; {_INSTALL}"
        )
    installed = {name for name in ("onnxruntime", "onnxruntime-gpu") if _is_installed(name)}
    if len(installed) > 1:
        raise DeviceError(
            f"onnxruntime and onnxruntime-gpu are both installed, each with files of the other; {_INSTALL}"
        )


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _require_driver() -> None:
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise DeviceError(
            f"--device cuda needs the driver of an NVIDIA GPU, which is not here ({error}); install it, or "
            "give the container access to the GPU (docker run --gpus all)"
        ) from error
    version, count = ctypes.c_int(), ctypes.c_int()
    failed = driver.cuInit(0)
    if failed:
        raise DeviceError(f"--device cuda: the NVIDIA driver does not start: {_told(driver, failed)}")
    driver.cuDeviceGetCount(ctypes.byref(count))
    if not count.value:
        raise DeviceError("--device cuda: the NVIDIA driver finds no GPU; is CUDA_VISIBLE_DEVICES empty?")
    driver.cuDriverGetVersion(ctypes.byref(version))
    built_for = _major(getattr(onnxruntime, "cuda_version", "")) or 0
    if version.value // 1000 < built_for:
        raise DeviceError(
            f"--device cuda: the NVIDIA driver goes up to CUDA {version.value // 1000}, and onnxruntime-gpu "
            f"{onnxruntime.__version__} needs {built_for}; install a newer driver"
        )


def _told(driver: ctypes.CDLL, error: int) -> str:
    text = ctypes.c_char_p()
    driver.cuGetErrorString(error, ctypes.byref(text))
    return f"{(text.value or b'unknown error').decode(errors='replace')} (CUDA error {error})"


def _major(version: str) -> int | None:
    first = version.partition(".")[0]
    return int(first) if first.isdecimal() else None


def _require_libraries() -> None:
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it misses, which follows below
        onnxruntime.preload_dlls()
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        for name in ("shared", "cuda"):
            ctypes.CDLL(str(folder / f"libonnxruntime_providers_{name}.so"), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise DeviceError(f"--device cuda: a library is missing: {error}; {_INSTALL}") from error
