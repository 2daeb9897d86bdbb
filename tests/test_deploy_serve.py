"""The manifests and the image of the server agree with the code; the tests read them and need no cluster."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from counted_server import server as server
from deploy_files import CONTAINER, DEPLOY, DEPLOYMENT, POD, SERVE, documents
from serving import Server

from jaxtempl.config import parsing
from jaxtempl.config.paths import ROOT
from jaxtempl.config.serving import ServeConfig
from jaxtempl.serve.events import store

COPIER = documents(SERVE / "copier.yaml")[0]["spec"]
BOUND = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def asked(folder: Path) -> ServeConfig:
    """Parse the command line of the pod, with its secret in `folder`."""
    (folder / "serve.yaml").write_text("store: postgresql+psycopg://user:word@host/database")
    argv = [word.replace("/etc/jaxtempl", str(folder)) for word in CONTAINER["args"]]
    return parsing.parse(ServeConfig, argv)


def test_all_files_are_used() -> None:
    [found] = documents(SERVE / "kustomization.yaml")
    assert {*found["resources"], "kustomization.yaml", "copier.yaml"} == {path.name for path in SERVE.iterdir()}
    assert [image["name"] for image in found["images"]] == [CONTAINER["image"]]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_builds_all_manifests() -> None:
    made = subprocess.run(["kubectl", "kustomize", str(SERVE)], capture_output=True, text=True, check=True)
    found = {each["kind"]: each for each in yaml.safe_load_all(made.stdout)}
    kinds = "Deployment", "Service", "PodDisruptionBudget", "ScaledObject", "NetworkPolicy", "PersistentVolumeClaim"
    assert set(found) == set(kinds)
    image = found["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == "registry.example.com/jaxtempl:serve"


def test_the_command_of_the_pod_is_valid(tmp_path: Path) -> None:
    settings: Any = asked(tmp_path)
    assert settings.host == "0.0.0.0"
    assert [port["containerPort"] for port in CONTAINER["ports"]] == [settings.port]
    assert settings.store.startswith("postgresql"), "SQLite is for one server"
    assert settings.threads == int(CONTAINER["resources"]["limits"]["cpu"])
    mounts = {mount["mountPath"]: mount for mount in CONTAINER["volumeMounts"]}
    assert mounts[str(Path(settings.bundle).parent)]["readOnly"]
    assert mounts["/etc/jaxtempl"]["readOnly"]
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in POD["volumes"]}


def test_the_probes_use_existing_routes_and_ports(server: Server) -> None:
    probes = [CONTAINER[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")]
    assert [probe["path"] for probe in probes] == ["/readyz", "/readyz", "/livez"]
    annotations = DEPLOYMENT["spec"]["template"]["metadata"]["annotations"]
    for path in {probe["path"] for probe in probes} | {annotations["prometheus.io/path"]}:
        assert server.ask(path).status == 200
    ports = {port["name"] for port in CONTAINER["ports"]}
    assert {probe["port"] for probe in probes} == ports
    assert documents(SERVE / "service.yaml")[0]["spec"]["ports"][0]["targetPort"] in ports
    assert annotations["prometheus.io/port"] == str(CONTAINER["ports"][0]["containerPort"])


def test_the_grace_period_covers_the_shutdown(tmp_path: Path) -> None:
    before = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    ends = before + asked(tmp_path).drain_seconds + store.CLOSE + store.PATIENCE
    assert before >= 5
    assert POD["terminationGracePeriodSeconds"] > ends
    assert DEPLOYMENT["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_all_manifests_select_the_same_pods() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    chosen = [documents(SERVE / name)[0]["spec"] for name in ("service.yaml", "disruption.yaml", "network.yaml")]
    selectors = [chosen[0]["selector"], chosen[1]["selector"]["matchLabels"], chosen[2]["podSelector"]["matchLabels"]]
    assert [*selectors, DEPLOYMENT["spec"]["selector"]["matchLabels"]] == [labels] * 4
    [scaled], [claim] = documents(SERVE / "autoscaler.yaml"), documents(SERVE / "bundles.yaml")
    assert scaled["spec"]["scaleTargetRef"]["name"] == DEPLOYMENT["metadata"]["name"]
    assert "replicas" not in DEPLOYMENT["spec"], "an apply would override the autoscaler"
    for pod in (POD, COPIER):
        claims = [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]]
        assert [name for name in claims if name] == [claim["metadata"]["name"]]


@pytest.mark.parametrize("pod", [POD, COPIER], ids=["serve", "copier"])
def test_no_container_runs_as_root(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert [container["securityContext"] for container in pod["containers"]] == [BOUND]


# The image

DOCKERFILE = (DEPLOY / "docker" / "Dockerfile.serve").read_text().replace("\\\n", "")
LINES = [line.split(maxsplit=1) for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]


def said(instruction: str) -> list[str]:
    return [rest for name, rest in LINES if name == instruction]


def test_the_images_copy_only_existing_files() -> None:
    kept = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    train = re.findall(r"^COPY (\S+)", (DEPLOY / "docker" / "Dockerfile.train").read_text(), re.MULTILINE)
    copied = [rest.split()[0] for rest in said("COPY") if not rest.startswith("--from=build")]
    assert {"bin", "jaxtempl", "requirements-serve.txt"} <= set(copied) <= kept
    assert set(train) <= kept
    assert all((ROOT / name).exists() for name in (*copied, *train))
    assert {rest.split(" AS ")[0] for rest in said("FROM")} == {"python:3.12-slim-bookworm"}


def test_the_image_installs_only_the_requirements_of_serving() -> None:
    assert set(re.findall(r"requirements\S*\.txt", DOCKERFILE)) == {"requirements-serve.txt"}
    [command] = re.findall(r"sed .*? > wanted\.txt", DOCKERFILE)
    before = (ROOT / "requirements-serve.txt").read_text().splitlines()
    environment = {**os.environ, "ONNXRUNTIME": "onnxruntime-gpu[cuda,cudnn]"}
    run = ["sh", "-c", command.removesuffix("> wanted.txt")]
    after = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    changed = [(a, b) for a, b in zip(before, after.stdout.splitlines(), strict=True) if a != b]
    assert [b for _, b in changed] == [a.replace("onnxruntime", "onnxruntime-gpu[cuda,cudnn]") for a, _ in changed]
    assert len(changed) == 1


def test_the_image_starts_the_server_as_a_user_other_than_root() -> None:
    [entry], [command], [user], [port] = map(said, ("ENTRYPOINT", "CMD", "USER", "EXPOSE"))
    assert [ROOT / Path(word).relative_to("/jaxtempl") for word in json.loads(entry)] == [ROOT / "bin" / "serve"]
    assert "exec " in (ROOT / "bin" / "serve").read_text(), "without exec, SIGTERM would end only the shell"
    settings: Any = parsing.parse(ServeConfig, json.loads(command))
    assert (settings.host, settings.port, settings.bundle) == ("0.0.0.0", int(port), "/bundle")
    ids = {POD["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")}
    assert {int(each) for each in user.split(":")} == ids
    assert str(Path(settings.store.removeprefix("sqlite:///")).parent) in DOCKERFILE


def test_the_health_check_fails_only_if_the_server_is_down(server: Server) -> None:
    [check] = said("HEALTHCHECK")
    _, flag, code = json.loads(check[check.index("[") :])
    ends = {}
    for port in (server.port, 1):
        command = [sys.executable, flag, code.replace(":8080", f":{port}")]
        ends[port] = subprocess.run(command, capture_output=True, check=False).returncode
    assert ends == {server.port: 0, 1: 1}
