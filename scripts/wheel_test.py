"""Serves the starter and the demo's bundle from the built wheel, where torch cannot be imported.

python scripts/wheel_test.py [--models .build/demo/models]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

SHIPPED = {
    "dragoman/py.typed",
    "dragoman_loadtest/py.typed",
    "dragoman_loadtest/report/page.html",
    "dragoman_server/starter_models/en-de/1/bundle.json",
}
LOCK, LOCKED_FOR = Path("docker/requirements.txt"), (3, 11)
MAX_MB = 400
CALLS = """
import dragoman, json, subprocess, sys, time
started = time.monotonic()
process = subprocess.Popen(
    ["dragoman", "serve", "--port", "0", "--json", *sys.argv[1:]], stdout=subprocess.PIPE, text=True
)
try:
    ready = json.loads(process.stdout.readline())
    with dragoman.Client(ready["address"]) as client:
        translation = client.translate("The old cat sees the small dogs.")
        seconds = time.monotonic() - started
        print(f"from the wheel, {ready['models']}, {seconds:.2f} s after its start: {translation.text}")
        assert translation.text and not translation.truncated
    process.terminate()
    assert process.wait(30) == 0, process.returncode
finally:
    process.kill()
"""


def main() -> None:
    """Build, install, serve without a flag, and what the demo made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path(".build/demo/models"))
    models: Path = parser.parse_args().models
    if not models.is_dir():
        sys.exit(f"{models} does not exist: run make demo first")
    folder = Path(".build/wheel").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ".")
    [wheel] = folder.glob("*.whl")
    missing = SHIPPED - set(zipfile.ZipFile(wheel).namelist())
    if missing:
        sys.exit(f"the wheel lacks {', '.join(sorted(missing))}")
    environment = folder / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    install(python, wheel)
    for name, must_import in (
        ("torch", False),
        ("onnx", False),
        ("onnxruntime", True),
        ("dragoman_server", True),
    ):
        imported = subprocess.run([python, "-c", f"import {name}"], stderr=subprocess.DEVNULL).returncode == 0
        if imported is not must_import:
            sys.exit(f"{name} {'can' if imported else 'cannot'} be imported in the wheel's environment")
    size = installed_bytes(environment) / 1e6
    print(f"the package and what it needs to serve: {size:.0f} MB, {MAX_MB} at most")
    if size > MAX_MB:
        sys.exit("that is too much")
    path = f"{environment / 'bin'}:/usr/bin:/bin"
    for flags in ((), ("--models", models.resolve())):
        subprocess.run([python, "-c", CALLS, *flags], check=True, cwd=folder, env={"PATH": path})


def install(python: Path, wheel: Path) -> None:
    """What the image installs, where this is the Python of the image; else what the package asks for."""
    pip = (python, "-m", "pip", "install", "--quiet", "--no-compile")
    if sys.version_info[:2] == LOCKED_FOR:
        run(*pip, "--require-hashes", "--requirement", LOCK)
        run(*pip, "--no-deps", wheel)
    else:
        run(*pip, f"{wheel}[server]")


def installed_bytes(environment: Path) -> int:
    """Of all files below the environment's packages, but for those that installed them."""
    [packages] = environment.glob("lib/*/site-packages")
    files = (path for path in packages.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    tools = ("pip", "setuptools")
    return sum(
        path.stat().st_size for path in files if not path.relative_to(packages).parts[0].startswith(tools)
    )


def run(*words: object) -> None:
    """Run a command that has to succeed."""
    subprocess.run([str(word) for word in words], check=True)


if __name__ == "__main__":
    main()
