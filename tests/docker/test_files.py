"""The files in docker/ are well formed, fit each other and the command line, and keep their promises."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement

from dragoman_server.config import ServerConfig
from dragoman_server.service.health import LIVENESS

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent
KUBERNETES = "1.33"
DOCKERFILES = ["Dockerfile", "Dockerfile.cuda"]
LOCKS = {"Dockerfile": ("requirements.txt", "server"), "Dockerfile.cuda": ("requirements.cuda.txt", "cuda")}
MANIFESTS = sorted(
    path.name for path in (DOCKER / "kubernetes/base").glob("*.yaml") if path.name != "kustomization.yaml"
)
FIELDS = set(ServerConfig.__dataclass_fields__)


def linted(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT, check=False)


def instructions(name: str) -> list[tuple[str, str]]:
    text = (DOCKER / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def flags(words: list[str]) -> set[str]:
    return {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in words if word[:2] == "--"}


def manifest(name: str) -> Any:
    return yaml.safe_load((DOCKER / "kubernetes/base" / name).read_text())


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfiles_are_linted(name: str, tmp_path: Path) -> None:
    done = linted(BIN / "hadolint", DOCKER / name)
    assert done.returncode == 0, done.stdout
    (tmp_path / name).write_text((DOCKER / name).read_text() + "RUN cd /tmp\nUSER root\n")
    assert linted(BIN / "hadolint", tmp_path / name).returncode == 1


def test_yaml_is_linted(tmp_path: Path) -> None:
    done = linted(BIN / "yamllint", "--strict", DOCKER)
    assert done.returncode == 0, done.stdout
    (tmp_path / "bad.yaml").write_text("a: 1\na: 2\n")
    assert linted(BIN / "yamllint", "--strict", "-c", ROOT / ".yamllint", tmp_path).returncode == 1


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_are_what_kubernetes_takes(name: str) -> None:
    found = manifest(name)
    kubernetes_validate.validate(found, KUBERNETES, strict=True)
    found["spec"]["surprise"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_run_as_nobody_in_particular(name: str) -> None:
    *_, last_stage = [i for i, (word, _) in enumerate(instructions(name)) if word == "FROM"]
    final = instructions(name)[last_stage:]
    assert ("USER", "10001:10001") in final
    assert "pip" not in " ".join(rest for _, rest in final)
    [entrypoint] = [rest for word, rest in final if word == "ENTRYPOINT"]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert yaml.safe_load(entrypoint) == ["dragoman"]
    assert "dragoman" in scripts
    [command] = [yaml.safe_load(rest) for word, rest in final if word == "CMD"]
    assert command[0] == "serve"
    assert flags(command) <= FIELDS
    assert ("device" in flags(command)) is (name == "Dockerfile.cuda")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_is_there_and_not_ignored(name: str) -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for word, rest in instructions(name):
        if word == "COPY" and not rest.startswith("--from"):
            *sources, _ = shlex.split(rest)
            for source in sources:
                assert (ROOT / source).exists()
                assert source in kept


@pytest.mark.parametrize("name", DOCKERFILES)
def test_locks_fit_the_package_and_hold_no_torch(name: str) -> None:
    file, extra = LOCKS[name]
    text = (DOCKER / file).read_text()
    pins = dict(re.findall(r"^([a-z0-9.-]+)==([^ ]+) \\$", text, re.MULTILINE))
    assert len(pins) == len(re.findall(r"^\S", text, re.MULTILINE))
    assert "torch" not in pins
    assert "onnx" not in pins
    assert ("onnxruntime" in pins) is (extra == "server")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["serving"], *extras[extra]]
    for requirement in map(Requirement, wanted):
        if requirement.name != "dragoman":
            assert requirement.specifier.contains(pins[requirement.name]), requirement
    assert all("--hash=sha256:" in part for part in re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:])


def test_the_deployment_keeps_its_promises() -> None:
    pod = manifest("deployment.yaml")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    given = dict(word.removeprefix("--").split("=") for word in container["args"][1:])
    assert flags(container["args"]) <= FIELDS
    ports = {port["containerPort"] for port in container["ports"]}
    assert {int(given["health-port"]), int(given["metrics-port"]), ServerConfig().port} == ports
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = float(given["drain-delay-seconds"]) + float(given["drain-seconds"])
    assert pod["terminationGracePeriodSeconds"] > sleep + drain + 3
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["grpc"]["port"] == int(given["health-port"])
    assert container["livenessProbe"]["grpc"] == {"port": int(given["health-port"]), "service": LIVENESS}
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
    for flag in ("tls-certificate", "tls-key", "tokens"):
        assert any(given[flag].startswith(f"{path}/") for path in mounted)


def test_selectors_and_metrics_meet() -> None:
    labels = manifest("deployment.yaml")["spec"]["template"]["metadata"]["labels"]
    assert manifest("service.yaml")["spec"]["selector"] == labels
    for name in ("pod-disruption-budget.yaml", "deployment.yaml"):
        assert manifest(name)["spec"]["selector"]["matchLabels"] == labels
    assert manifest("network-policy.yaml")["spec"]["podSelector"]["matchLabels"] == labels
    [metric] = manifest("autoscaler.yaml")["spec"]["metrics"]
    adapter = yaml.safe_load((DOCKER / "kubernetes/prometheus-adapter.yaml").read_text())
    [rule] = adapter["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    known = (ROOT / "docs/metrics.md").read_text()
    series = re.findall(r"dragoman_\w+", rule["seriesQuery"] + rule["metricsQuery"])
    assert len(series) == 2
    assert all(f"`{one.removesuffix('_bucket')}`" in known for one in series)
    assert sorted(manifest("kustomization.yaml")["resources"]) == MANIFESTS


def test_an_overlay_stands_beside_what_it_changes() -> None:
    overlay = DOCKER / "kubernetes/cuda"
    said = yaml.safe_load((overlay / "kustomization.yaml").read_text())
    for resource in said["resources"]:
        found = (overlay / resource).resolve()
        assert (found / "kustomization.yaml").is_file()
        # kustomize takes a folder above for a cycle.
        assert found not in overlay.resolve().parents
    [change] = said["patches"]
    for operation in yaml.safe_load(change["patch"]):
        *path, last = operation["path"].removeprefix("/").split("/")
        place = manifest("deployment.yaml")
        for word in path:
            place = place[int(word) if isinstance(place, list) else word]
        assert operation["op"] == "add" or last in place


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
@pytest.mark.parametrize("name", ["base", "cuda"])
def test_kustomize_makes_manifests_that_kubernetes_takes(name: str) -> None:
    done = linted("kubectl", "kustomize", DOCKER / "kubernetes" / name)
    assert done.returncode == 0, done.stderr
    made = list(yaml.safe_load_all(done.stdout))
    assert len(made) == len(MANIFESTS)
    for one in made:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
    [deployment] = [one for one in made if one["kind"] == "Deployment"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    on_gpu = name == "cuda"
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) is on_gpu
    assert ("--device=cuda" in container["args"]) is on_gpu
    assert container["image"] == ("dragoman:cuda" if on_gpu else "dragoman")


def test_compose_names_what_is_there() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    override = yaml.safe_load((DOCKER / "compose.cuda.yaml").read_text())["services"]
    secret = yaml.safe_load((DOCKER / "compose.tls.yaml").read_text())["services"]["dragoman"]
    assert flags(secret["command"]) <= FIELDS
    for name in DOCKERFILES:
        # It takes the place of the image's command, which must not lose a flag by that.
        [command] = [yaml.safe_load(rest) for word, rest in instructions(name) if word == "CMD"]
        assert flags(command) <= flags(secret["command"])
    assert secret["volumes"][0].endswith(":/etc/dragoman:ro")
    assert override.keys() <= services.keys()
    for build in (services["dragoman"]["build"], override["dragoman"]["build"]):
        assert (ROOT / build["dockerfile"]).is_file()
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("./"):
                assert (DOCKER / source).exists()
        assert service["cap_drop"] == ["ALL"]
    scraped = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"][0]
    [[target]] = [config["targets"] for config in scraped["static_configs"]]
    assert target.partition(":")[0] in services
    assert target.endswith(":9090")
