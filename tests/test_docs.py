"""The commands of the README and docs/ run in order in one folder, and every command, flag and link exists.

Commands run in one process, except the server, its clients, hosts, and a bundle without JAX.
Trainings are short and use small models. The pages about serving, meshes and Triton also have their own tests.
"""

import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from children import environment
from interpreter import Interpreter
from scaled import study_rows, use_fast_fits, write
from serving import free_port

from converters.__main__ import CONVERTERS
from jaxtempl.commands import adapt, experiment, scaling, templates
from jaxtempl.config import parsing
from jaxtempl.config.data import PrepareConfig
from jaxtempl.config.evaluation import DemoConfig, EvaluateConfig, SuggestConfig
from jaxtempl.config.paths import ROOT
from jaxtempl.config.serving import LoadtestConfig, ServeConfig, ServeEventsExportConfig
from jaxtempl.config.training import AdaptConfig, FinetuneConfig
from jaxtempl.errors import UserError
from jaxtempl.experiments import simulate, world
from jaxtempl.synthetic import generator

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
PATH = [
    README,
    *(ROOT / "docs" / f"{name}.md" for name in ("data", "redaction", "training", "evaluation", "converting")),
]
CONFIGS: dict[str, Any] = {
    **{"prepare": PrepareConfig, "adapt": AdaptConfig, "finetune": FinetuneConfig, "evaluate": EvaluateConfig},
    **{"suggest": SuggestConfig, "demo": DemoConfig, "serve": ServeConfig, "loadtest": LoadtestConfig},
    "serve events export": ServeEventsExportConfig,
    **{f"experiment {name}": kind for name, (_, kind) in experiment.COMMANDS.items()},
    **{f"scaling {name}": kind for name, (_, kind) in scaling.COMMANDS.items()},
    **{f"templates {name}": kind for name, (_, kind) in templates.COMMANDS.items()},
    **{f"convert {name}": kind for name, (_, kind) in CONVERTERS.items()},
}
SMALLER = {
    **{"410m": "nano-0.6m", "bert-base": "bert-tiny"},
    **{", 600)": ", 40)", "--length=512": "--length=128", "--zero_shot=20": "--zero_shot=4"},
    **{"--labels=2000": "--labels=40", "--labels=500": "--labels=20"},
}
EXTRA = {  # flags appended to a line, by its prefix
    "bin/prepare --transcripts=transcripts.jsonl.gz": ["--size=nano-0.6m", "--length=128"],
    "bin/prepare --transcripts=sample/transcripts.jsonl.gz --redact=default --measure": ["--planted_values=2"],
    "bin/adapt": ["--steps=2", "--batch_size=4", "--weights=random"],
    "bin/finetune": ["--steps=2", "--length=64", "--gradient_accumulation_steps=1"],
    "bin/evaluate": ["--baselines=false"],
    "bin/convert onnx": ["--verify_contexts=20"],
}
SCRIPTS = ("bin/suggest --bundle",)  # also run through the shell script
PLACES = re.compile(r"\]\(([^)#:]*)(?:#([^)]+))?\)")


def commands(page: Path) -> list[str]:
    """Return the lines of a page's shell blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text().replace("\\\n", ""), re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def project_commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each command of this project on a page."""
    for line in commands(page):
        if line.startswith("bin/"):
            yield shlex.split(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_exists_and_accepts_its_flags(page: Path) -> None:
    for script, *words in project_commands(page):
        assert os.access(ROOT / script, os.X_OK)
        if script == "bin/test":
            continue
        names = [" ".join([script.removeprefix("bin/"), *words[:count]]) for count in (2, 1, 0)]
        name = next(name for name in names if name in CONFIGS)
        parsing.parse(CONFIGS[name], [word.replace("$i", "0") for word in words[name.count(" ") :]])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_anchors_exist(page: Path) -> None:
    for name, anchor in PLACES.findall(page.read_text()):
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name} links to {name}"
        if anchor:
            headings = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_are_short(page: Path) -> None:
    limit = {"README": 120}.get(page.stem, 200)
    assert len(page.read_text().splitlines()) <= limit


def test_the_index_links_every_page_and_names_every_command() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    assert {page.name for page in PAGES} - {"index.md", "README.md"} <= set(re.findall(r"\]\(([\w-]+\.md)", index))
    scripts = {path.name for path in (ROOT / "bin").iterdir()} - {"environment.sh", "setup"}
    assert scripts <= {name for page in (README, ROOT / "docs" / "index.md") for name in named(page)}


def named(page: Path) -> list[str]:
    return re.findall(r"\bbin/(\w+)", page.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with transcripts, and with the checkout's examples and sample."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "jaxtempl" / "assets").mkdir(parents=True)
    for part in ("examples", "jaxtempl/assets/star"):
        (folder / part).symlink_to(ROOT / part)
    generator.write(folder, 40)
    return folder


@pytest.fixture(scope="module")
def interpreter(folder: Path) -> Iterator[Interpreter]:
    interpreter = Interpreter(folder)
    yield interpreter
    interpreter.close()


def completed(line: str) -> list[str]:
    """Return the words of a line, with sizes small enough for a test."""
    words = shlex.split(functools.reduce(lambda text, pair: text.replace(*pair), SMALLER.items(), line))
    if words[0] == "bin/adapt" and "--plan" in words:
        return words
    extra = next((flags for start, flags in EXTRA.items() if line.startswith(start)), [])
    return [*words, *(flag for flag in extra if flag.split("=")[0] not in {word.split("=")[0] for word in words})]


def start(words: list[str], folder: Path) -> "subprocess.Popen[str]":
    """Start a command's script as a process with one device."""
    words = [str(ROOT / words[0]) if words[0].startswith("bin/") else words[0], *words[1:]]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, cwd=folder, env=environment(), **pipes)


def finish(process: "subprocess.Popen[str]") -> None:
    errors = process.communicate()[1]
    assert process.returncode == 0, f"{process.args}\n{errors}"


def serve(line: str, folder: Path) -> tuple["subprocess.Popen[str]", int]:
    port = free_port()
    server = start([*shlex.split(line), f"--port={port}"], folder)
    assert any("is served at" in printed for printed in server.stdout or ())
    return server, port


def test_the_commands_of_the_guides_run_in_order(folder: Path, interpreter: Interpreter) -> None:
    server, port, hosts = None, 0, list["subprocess.Popen[str]"]()
    lines = dict.fromkeys(line for page in PATH for line in commands(page))  # a line on several pages runs once
    assert list(lines)[:2] == ["bin/demo", "bin/test"]
    for line in list(lines)[2:]:
        if line.startswith("bin/serve"):
            server, port = serve(line, folder)
        elif "$i" in line:
            hosts = [start(completed(line.replace("$i", i)), folder) for i in ("0", "1")]
        elif line.startswith("bin/") and not line.startswith(SCRIPTS):
            interpreter.run(completed(line))
        else:
            words = completed(line.replace(":8080", f":{port}").replace(".venv/bin/python", sys.executable))
            finish(start(words, folder))
    for host in hosts:
        finish(host)
    assert server
    [loadtest] = [line for line in commands(ROOT / "docs" / "serving-operations.md") if line.startswith("bin/loadtest")]
    interpreter.run([*shlex.split(loadtest), f"--url=http://localhost:{port}", "--minutes=0.02", "--warmup=0"])
    server.terminate()
    assert server.wait(30) == 0
    server.communicate()
    assert (folder / "loadtest" / "index.html").is_file()
    assert (folder / "converted" / "model.safetensors").is_file()
    assert (folder / "runs" / "finetune-nano-0.6m" / "evaluate-test" / "index.html").is_file()
    assert (folder / "zero-shot" / "report.json").is_file()


@pytest.mark.parametrize("line", [line for line in commands(README) if line.startswith("bin/adapt --size=410m")])
def test_the_error_for_a_missing_dataset_names_prepare(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="data is not a dataset; make one with bin/prepare"):
        adapt.main(shlex.split(line)[1:])


def test_the_commands_of_the_laws_page_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    use_fast_fits(monkeypatch)
    points = [(row["parameters_body"], row["tokens"], row["domain_loss"]) for row in study_rows()[:36] if row["tokens"]]
    lines = [",".join(map(str, point)) for point in points]
    (folder / "runs.csv").write_text("\n".join(["parameters,tokens,loss", *lines]))
    for line in commands(ROOT / "docs" / "laws.md"):
        scaling.main(shlex.split(line)[1:])
    assert (folder / "fit" / "index.html").is_file()


def test_the_commands_of_the_scaling_page_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of docs/scaling.md run on synthetic results instead of hours of training."""
    monkeypatch.chdir(folder)
    use_fast_fits(monkeypatch)
    write(folder / "runs" / "scaling" / "laptop", study_rows()[:66])
    for line in commands(ROOT / "docs" / "scaling.md"):
        if line.startswith(("bin/scaling report", "bin/scaling advise")):
            scaling.main(shlex.split(line)[1:])
        elif line.startswith("bin/scaling run"):
            scaling.main([*shlex.split(line)[1:], "--plan=true"])
    assert (folder / "runs" / "scaling" / "laptop" / "report" / "index.html").is_file()


def test_the_commands_of_the_experiments_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of docs/experiments.md run on a simulated test of the page's file, in which nothing is broken."""
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "experiments.md"
    [written] = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    Path("experiments.yaml").write_text(written)
    models = (world.SimulatedModel("v3", 0.3, 0), world.SimulatedModel("v4", 0.4))
    tests = (world.SimulatedTest(("v3", "v4"), 0),)
    start = datetime(2026, 3, 2, tzinfo=UTC)
    settings = {"models": models, "tests": tests, "start": start, "pairs_a_week": 500, "advocates": 50, "templates": 20}
    changed = msgspec.structs.replace(world.read("null"), **settings)
    simulate.simulate(changed, Path("events.parquet"), Path("truth.parquet"))
    for line in commands(page):
        experiment.main(shlex.split(line)[1:])
    printed = capsys.readouterr().out
    assert "takes 121 days" in printed
    assert "Suggestions save" in printed
    for folder in ("plan", "analysis", "report"):
        assert (tmp_path / folder / "report.json").is_file()
