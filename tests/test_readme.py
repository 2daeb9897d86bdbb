"""Every command of the README runs, in its order, from a folder of its own."""

import functools
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from scaled import made, write
from serving import free_port

from jaxtempl.config.paths import ROOT

README = (ROOT / "README.md").read_text()
# Trainings are cut short and of little models, and what installs or needs a network is looked at in other ways.
SMALLER = {"--size=bert-base": "--size=bert-tiny", "adapt-bert-base": "adapt-bert-tiny", ", 600)": ", 40)"}
SHORTER = {
    "bin/adapt --size=bert": ["--steps=2", "--weights=random", "--batch_size=4"],
    "bin/adapt": ["--steps=2"],
    "bin/finetune": ["--steps=2"],
    "bin/evaluate": ["--baselines=false"],
    "bin/convert onnx": ["--verify_contexts=40"],
    "bin/loadtest": ["--minutes=0.02", "--warmup=0"],
}


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.S)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_the_readme_has_the_commands() -> None:
    scripts = {line.split()[0] for line in commands()}
    assert {path.name for path in (ROOT / "bin").iterdir()} - {"environment.sh", "setup"} == {
        name.removeprefix("bin/") for name in scripts if name.startswith("bin/")
    }


def test_the_first_two_commands_can_be_started() -> None:
    assert commands()[:2] == ["bin/demo", "bin/test"]
    assert all(os.access(ROOT / line, os.X_OK) for line in commands()[:2])


def start(line: str, folder: Path) -> "subprocess.Popen[str]":
    words = shlex.split(functools.reduce(lambda line, given: line.replace(*given), SMALLER.items(), line))
    script, short = Path(words[0]), next((f for name, f in SHORTER.items() if line.startswith(name)), [])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    program = words[0] if words[0] == "curl" else str(ROOT / script)
    command = [program, *words[1:], *short]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes)


def test_the_path_runs_as_written(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    write(tmp_path / "runs" / "scaling" / "laptop", made()[:66])  # in place of two hours' work
    server, port = None, free_port()
    for line in commands()[2:]:
        if "410m" in line:
            continue
        if line == "bin/serve --bundle=bundle":
            server = start(f"{line} --port={port}", tmp_path)
            assert any("is served at" in told for told in server.stdout or ())
            continue
        line = line.replace(":8080", f":{port}").replace("bin/loadtest", f"bin/loadtest --url=http://localhost:{port}")
        started = [start(line.replace("$i", i), tmp_path) for i in ("0", "1")[: 1 + ("$i" in line)]]
        for process in started:
            said = process.communicate()[1]
            assert process.returncode == 0, f"{line}\n{said}"
    assert server
    server.terminate()
    assert server.wait(30) == 0
    server.communicate()
    assert (tmp_path / "events.parquet").is_file()
    assert (tmp_path / "runs" / "scaling" / "laptop" / "report" / "index.html").is_file()
    assert (tmp_path / "loadtest" / "index.html").is_file()
    assert (tmp_path / "converted" / "model.safetensors").is_file()
    assert (tmp_path / "runs" / "finetune-nano" / "evaluate-test" / "index.html").is_file()


@pytest.mark.parametrize("line", [line for line in commands() if "410m" in line])
def test_a_large_size_without_a_dataset_teaches_prepare(line: str, tmp_path: Path) -> None:
    words = shlex.split(line)
    found = subprocess.run([str(ROOT / words[0]), *words[1:]], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 1
    assert found.stderr == "error: data is no dataset; make one: bin/prepare --transcripts=PATH --out=data\n"
