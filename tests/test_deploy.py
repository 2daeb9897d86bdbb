"""Tests of deploying a training: scripts run with stand-ins for SLURM, and Kubernetes manifests are parsed."""

import dataclasses
import importlib.metadata
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench import scale, tpu_compile
from bench.scale import Machine
from jaxtempl import files
from jaxtempl.config import parsing, sizes
from jaxtempl.config.paths import ROOT
from jaxtempl.config.training import AdaptConfig, FinetuneConfig
from jaxtempl.parallel.mesh import MeshShape
from jaxtempl.planning import estimate, memory
from jaxtempl.planning.memory import MicrobatchShape
from jaxtempl.specs.accelerators import ACCELERATORS
from jaxtempl.specs.architecture import NeoXArchitecture
from jaxtempl.training import initialization

DEPLOY = ROOT / "deploy"
SCRIPT = DEPLOY / "slurm" / "train.sbatch"
OVERLAYS = sorted(path for path in (DEPLOY / "kubernetes").glob("[gt]pu/*") if path.name != "base")
JOINING = ("--coordinator", "--num_processes", "--process_id")
GPU, TPU = "a100-80", "v5e"  # keys of DEVICES; an H100 has the same memory
KINDS = {"adapt": AdaptConfig, "finetune": FinetuneConfig}


def parsed(argv: list[str]) -> Any:
    """Return the config of a command line that begins with bin/."""
    phase = argv[0].removeprefix("bin/")
    return parsing.parse(KINDS[phase], argv[1:], lambda given: initialization.config_layers(phase, given))


def architecture(size: str) -> NeoXArchitecture:
    return NeoXArchitecture(**sizes.read_size(size)["architecture"])


def planned(settings: AdaptConfig, machine: Machine) -> MicrobatchShape:
    """Return the microbatch of a training on a machine; raise where no mesh fits."""
    asked = dataclasses.replace(settings, devices=machine.devices)
    return estimate.plan_microbatch(asked, architecture(settings.size), machine.device, scale.LENGTH)


# SLURM


def stand_in(folder: Path, name: str, body: str) -> None:
    """Write a command that logs its arguments."""
    said = f'echo $(printf "%q " {name} "$@") >> {folder}/log'
    (folder / name).write_text(f"#!/bin/bash\n{said}\n{body}\n")
    (folder / name).chmod(0o755)


def environment(folder: Path, nodes: int) -> dict[str, str]:
    told = {"SLURM_JOB_ID": "123", "SLURM_NNODES": str(nodes), "SLURM_CPUS_PER_TASK": "32"}
    return {"PATH": f"{folder}:{os.environ['PATH']}", **told}


def submitted(folder: Path, *argv: str, code: int = 0, nodes: int = 1) -> tuple[int, list[list[str]]]:
    """Run the batch script with an srun that exits with `code`; return its exit status and its SLURM commands."""
    stand_in(folder, "srun", f"exit {code}")
    stand_in(folder, "scontrol", "")
    done = subprocess.run(["bash", str(SCRIPT), *argv], cwd=ROOT, env=environment(folder, nodes), capture_output=True)
    log = folder / "log"
    return done.returncode, [shlex.split(line) for line in log.read_text().splitlines()] if log.exists() else []


def options() -> dict[str, str]:
    """Return the script's sbatch options; sbatch stops reading at the first command."""
    comments = SCRIPT.read_text().split("\nset -eu\n")[0].splitlines()
    assert all(line.startswith("#") for line in comments)
    pairs = [line.removeprefix("#SBATCH --").partition("=") for line in comments if line.startswith("#SBATCH")]
    return {name: value for name, _, value in pairs}


def test_sbatch_signals_the_tasks_and_not_the_shell() -> None:
    asked = options()
    assert asked["signal"] == "TERM@120", "with B: only the shell would receive it"
    assert "requeue" in asked
    assert asked["open-mode"] == "append", "a requeued job must keep its log"
    assert asked["ntasks-per-node"] == "1"
    assert len(re.findall("#SBATCH", SCRIPT.read_text())) == len(asked), "an option comes too late, or twice"


@pytest.mark.parametrize("size", scale.SIZES)
@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_a_job_trains_on_a_mesh_that_fits(size: str, nodes: int, tmp_path: Path) -> None:
    code, [srun] = submitted(tmp_path, "adapt", size, nodes=nodes)
    assert code == 0
    command = next(i for i, word in enumerate(srun) if word.startswith("bin/"))
    assert {"--wait=120", "--kill-on-bad-exit=0", "--cpus-per-task=32"} == set(srun[1:command])
    settings = parsed(srun[command:])
    machine = Machine("", GPU, 8 * nodes)
    microbatch = planned(settings, machine)
    assert (microbatch.mesh, microbatch.rows) == (MeshShape(nodes, 8, 1), scale.ROWS * 8 * nodes)
    assert scale.fits(machine.device, scale.device_memory(size, machine, microbatch))


def test_flags_of_the_user_override_the_flags_of_the_script(tmp_path: Path) -> None:
    _, [srun] = submitted(tmp_path, "finetune", "1.4b", "--out=runs/a b", "--remat=none")
    settings = parsed(srun[srun.index("bin/finetune") :])
    assert (settings.out, settings.remat) == ("runs/a b", "none")


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (0, False), (1, False), (2, False), (137, False)])
def test_only_a_job_that_saved_is_requeued(code: int, requeued: bool, tmp_path: Path) -> None:
    found, commands = submitted(tmp_path, "adapt", "410m", code=code)
    assert found == code
    assert commands[1:] == ([["scontrol", "requeue", "123"]] if requeued else [])


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_signal_to_the_tasks_requeues_the_job_and_one_to_the_job_ends_it(cancelled: bool, tmp_path: Path) -> None:
    stand_in(tmp_path, "srun", f'trap "exit 75" TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.02; done')
    stand_in(tmp_path, "scontrol", "")
    line = ["bash", str(SCRIPT), "adapt", "410m"]
    job = subprocess.Popen(line, cwd=ROOT, env=environment(tmp_path, 1), start_new_session=True)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        time.sleep(0.02)
    if cancelled:
        os.killpg(job.pid, signal.SIGTERM)
    else:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    assert job.wait(timeout=60) == (-signal.SIGTERM if cancelled else 75)
    assert ("scontrol requeue 123" in (tmp_path / "log").read_text()) == (not cancelled)


@pytest.mark.parametrize("argv", [[], ["adapt"], ["adpat", "410m"]])
def test_a_wrong_call_exits_with_2_and_submits_nothing(argv: list[str], tmp_path: Path) -> None:
    assert submitted(tmp_path, *argv) == (2, [])


# Kubernetes


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def resolved(folder: Path) -> dict[str, Any]:
    """Return the JobSet of an overlay, built from the features of kustomize that deploy/ uses."""
    [overlay] = documents(folder / "kustomization.yaml")
    assert set(overlay) == {"apiVersion", "kind", "resources", "nameSuffix", "patches"}
    [base_path] = overlay["resources"]
    [base] = documents(folder / base_path / "kustomization.yaml")
    assert set(base) == {"apiVersion", "kind", "resources", "images"}
    [found] = documents(folder / base_path / base["resources"][0])
    found["metadata"]["name"] += overlay["nameSuffix"]
    for patch in overlay["patches"]:
        assert patch["target"] == {"kind": found["kind"]}
        for operation in yaml.safe_load(patch["patch"]):
            apply(found, **operation)
    for container in pod(found)["containers"]:
        [image] = [image for image in base["images"] if image["name"] == container["image"]]
        container["image"] = f"{image['newName']}:{image['newTag']}"
    return found


def apply(target: Any, op: str, path: str, value: Any) -> None:
    """Apply one operation of RFC 6902 (JSON Patch)."""
    *keys, last = [key.replace("~1", "/").replace("~0", "~") for key in path.split("/")[1:]]
    for key in keys:
        target = target[int(key)] if isinstance(target, list) else target[key]
    if op == "replace":
        assert last in target
        target[last] = value
    else:
        assert (op, last) == ("add", "-")
        target.append(value)


def job(found: dict[str, Any]) -> dict[str, Any]:
    [replicated] = found["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    return replicated["template"]["spec"]


def pod(found: dict[str, Any]) -> dict[str, Any]:
    return job(found)["template"]["spec"]


def command(found: dict[str, Any]) -> list[str]:
    """Return the command of the first pod, with environment variables expanded as the kubelet does."""
    [container] = pod(found)["containers"]
    known = {variable["name"] for variable in container.get("env", [])} | {"JOB_COMPLETION_INDEX"}
    words = container["command"] + container["args"]
    used = {name for word in words for name in re.findall(r"\$\((\w+)\)", word)}
    assert used <= known
    values = {"COORDINATOR": "adapt-410m-host-0-0.adapt-410m", "JOB_COMPLETION_INDEX": "0"}
    return [re.sub(r"\$\((\w+)\)", lambda name: values[name[1]], word) for word in words]


def machine_of(found: dict[str, Any]) -> Machine:
    """Return the machine of all devices of a JobSet."""
    [(resource, count)] = pod(found)["containers"][0]["resources"]["limits"].items()
    return Machine(
        resource, {"nvidia.com/gpu": GPU, "google.com/tpu": TPU}[resource], count * job(found)["parallelism"]
    )


def test_there_is_an_overlay_for_each_size_on_each_machine() -> None:
    names = {f"{path.parent.name}/{path.name}" for path in OVERLAYS}
    assert names == {f"{kind}/{size}" for kind in ("gpu", "tpu") for size in scale.SIZES}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_kustomize_builds_the_same_jobset(folder: Path) -> None:
    made = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True)
    assert yaml.safe_load(made.stdout) == resolved(folder)


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_a_jobset_trains_on_a_mesh_that_fits(folder: Path) -> None:
    found = resolved(folder)
    machine = machine_of(found)
    settings = parsed([word for word in command(found) if not word.startswith(JOINING)])
    assert (settings.size, settings.out) == (folder.name, f"/volume/runs/adapt-{folder.name}")
    microbatch = planned(settings, machine)
    assert (microbatch.mesh.devices, microbatch.rows) == (machine.devices, scale.ROWS * machine.devices)
    assert scale.fits(machine.device, scale.device_memory(settings.size, machine, microbatch))


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_a_jobset_meets_the_requirements_of_kubernetes(folder: Path) -> None:
    found = resolved(folder)
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert re.fullmatch("[a-z][a-z0-9-]*[a-z0-9]", found["metadata"]["name"]), "the name must be valid for a service"
    work, inside = job(found), pod(found)
    assert work["parallelism"] == work["completions"]
    assert (work["completionMode"], work["backoffLimit"]) == ("Indexed", 0)
    assert inside["restartPolicy"] == "Never", "a podFailurePolicy needs it"
    assert inside["terminationGracePeriodSeconds"] >= 60
    volumes = {volume["name"]: volume for volume in inside["volumes"]}
    mounts = [mount["name"] for mount in inside["containers"][0]["volumeMounts"]]
    assert set(mounts) == set(volumes)
    told = {variable["name"]: variable.get("value", "") for variable in inside["containers"][0]["env"]}
    places = {mount["mountPath"]: mount["name"] for mount in inside["containers"][0]["volumeMounts"]}
    assert places[str(Path(told["HF_HOME"]).parent)] == "volume", "downloads must outlive the pod"
    [claim] = documents(DEPLOY / "kubernetes" / "volume.yaml")
    assert volumes["volume"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_a_training_that_saved_restarts_without_limit_and_one_that_failed_does_not(folder: Path) -> None:
    found = resolved(folder)
    saved, disrupted = job(found)["podFailurePolicy"]["rules"]
    assert saved["onExitCodes"] == {"containerName": "train", "operator": "In", "values": [75]}
    assert pod(found)["containers"][0]["name"] == "train"
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert saved["action"] == disrupted["action"] == "FailJob"
    policy = found["spec"]["failurePolicy"]
    assert 0 < policy["maxRestarts"] < 100
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in policy["rules"]] == [
        ("RestartJobSetAndIgnoreMaxRestarts", ["PodFailurePolicy"])
    ]


@pytest.mark.parametrize("folder", [p for p in OVERLAYS if p.parent.name == "gpu"], ids=lambda p: p.name)
def test_each_process_of_gpu_hosts_receives_its_index_and_coordinator(folder: Path) -> None:
    found = resolved(folder)
    told = dict(word.split("=") for word in command(found) if word.startswith(JOINING))
    hosts = job(found)["completions"]
    named = "adapt-410m-host-0-0.adapt-410m:8476"
    assert told == {"--coordinator": named, "--num_processes": str(hosts), "--process_id": "0"}
    assert found["spec"]["coordinator"] == {"replicatedJob": "host", "jobIndex": 0, "podIndex": 0}
    assert found["spec"]["replicatedJobs"][0]["name"] == "host"
    assert found["spec"]["network"]["enableDNSHostnames"] is True


@pytest.mark.parametrize("folder", [p for p in OVERLAYS if p.parent.name == "tpu"], ids=lambda p: p.name)
def test_a_slice_has_the_hosts_of_its_topology(folder: Path) -> None:
    found = resolved(folder)
    topology = pod(found)["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    wide, high = map(int, topology.split("x"))
    assert wide * high == machine_of(found).devices
    assert not [word for word in command(found) if word.startswith(JOINING)], "GKE sets them"


def test_gpu_and_tpu_have_the_same_failure_policy() -> None:
    gpu, tpu = (resolved(DEPLOY / "kubernetes" / kind / "410m") for kind in ("gpu", "tpu"))
    assert gpu["spec"]["failurePolicy"] == tpu["spec"]["failurePolicy"]
    assert job(gpu)["podFailurePolicy"] == job(tpu)["podFailurePolicy"]
    assert pod(gpu)["terminationGracePeriodSeconds"] == pod(tpu)["terminationGracePeriodSeconds"]


# Docker image


def test_the_image_copies_existing_files_and_installs_existing_extras() -> None:
    lines = (DEPLOY / "docker" / "Dockerfile.train").read_text().splitlines()
    copied = [line.split()[1] for line in lines if line.startswith("COPY")]
    assert {"bin", "configs", "jaxtempl", "requirements.txt"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    extras = set(importlib.metadata.metadata("jax").get_all("Provides-Extra") or [])
    asked = {found for line in lines for found in re.findall(r"\bJAX=(\w+)", line)}
    assert asked == {"cuda13", "tpu"}
    assert asked <= extras


# docs/scale.md


PAGE = scale.PAGE.read_text()


def test_the_tables_equal_what_the_code_computes() -> None:
    assert scale.filled(PAGE) == PAGE, "run python -m bench.scale"


@pytest.mark.parametrize(
    "row",
    files.read_json(ROOT / "docs/benchmarks/tpu_compile.json")["cases"],
    ids=lambda row: f"{row['size']}-{row['slice']}",
)
def test_the_formula_predicts_the_memory_that_the_tpu_compiler_reports(row: dict[str, Any]) -> None:
    """The prediction is at most 5% below and 15% above the compiler's."""
    rows = tpu_compile.ROWS * row["devices"]
    microbatch = MicrobatchShape(
        MeshShape(1, row["devices"], 1), rows, tpu_compile.LENGTH, row["remat"], accumulates=False, flash=True
    )
    lanes = ACCELERATORS[row["slice"].partition(":")[0]].lanes
    counted = memory.activation_bytes(architecture(row["size"]), microbatch, lanes)
    assert 0.95 < counted / row["gradient"]["temporary_bytes"] < 1.15


def lines_of_the_page() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.replace("\\\n", ""), re.S)
    return [line.split("  #")[0] for block in blocks for line in block.splitlines() if line.strip()]


def test_every_file_that_the_page_names_exists() -> None:
    words = [word for line in lines_of_the_page() for word in shlex.split(line)]
    named = [word for word in words if word.startswith(("deploy/", "bin/"))]
    assert {"deploy/slurm/train.sbatch", "deploy/kubernetes/volume.yaml", "deploy/kubernetes/gpu/410m"} <= set(named)
    assert all((ROOT / name).exists() for name in named)
    assert all((scale.PAGE.parent / link).exists() for link in re.findall(r"\]\(([^)#:]+)\)", PAGE))


COMMANDS = [line[line.index("bin/") :] for line in lines_of_the_page() if "bin/" in line]


def test_every_command_of_the_page_is_valid() -> None:
    assert len(COMMANDS) == 4
    for line in COMMANDS:
        parsed([word for word in shlex.split(line) if not word.startswith(JOINING)])


def takes(line: list[str]) -> bool:
    settings: Any = parsed(line)
    return 0 <= settings.process_id < settings.num_processes


@pytest.mark.parametrize("line", [line for line in COMMANDS if JOINING[0] in line])
def test_processes_started_by_hand_have_a_valid_index(line: str) -> None:
    assert takes(shlex.split(line))


@pytest.mark.parametrize("folder", [p for p in OVERLAYS if p.parent.name == "gpu"], ids=lambda p: p.name)
def test_the_whole_command_of_a_gpu_host_is_valid(folder: Path) -> None:
    assert takes(command(resolved(folder)))
