"""The commands of docs/serving.md and docs/serving-operations.md run, and their tables equal the code."""

import dataclasses
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import msgspec
import pyarrow.parquet
import pytest
from bundles import make_graph, write_bundle, write_serving_bundle
from counted_server import exported
from counted_server import server as server
from deploy_files import CONTAINER, POD
from require import missing
from serving import Server, served

from jaxtempl.config import parsing
from jaxtempl.config.paths import ROOT
from jaxtempl.config.serving import LoadtestConfig, ServeConfig, ServeEventsExportConfig
from jaxtempl.serve import schema
from jaxtempl.serve.events import store
from jaxtempl.serve.events.export import SCHEMA
from jaxtempl.serve.http import openapi

PAGE = "\n".join((ROOT / "docs" / name).read_text() for name in ("serving.md", "serving-operations.md"))
SHELL = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
[PYTHON] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
PROSE = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
KINDS: dict[str, Any] = {
    "serve": ServeConfig,
    "serve events export": ServeEventsExportConfig,
    "loadtest": LoadtestConfig,
}


def commands() -> list[list[str]]:
    lines = "".join(SHELL).replace("\\\n", "").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def project_commands() -> list[tuple[Any, list[str]]]:
    """Return the config class and the flags of each command of this project."""
    parsed = []
    for words in commands():
        if words[0].startswith("bin/"):
            assert (ROOT / words[0]).exists()
            name = " ".join([words[0].removeprefix("bin/"), *(word for word in words[1:] if word[0] != "-")])
            parsed.append((KINDS[name], [word for word in words if word.startswith("--")]))
    return parsed


def tables(head: str) -> list[list[list[str]]]:
    """Return the cells of all tables whose header row starts with `head`."""
    parts = [part.partition("\n\n")[0].splitlines()[2:] for part in PAGE.split(f"\n| {head} |")[1:]]
    return [[[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows] for rows in parts]


def names(rows: list[list[str]], column: int = 0) -> list[str]:
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row[column])]


class Site(NamedTuple):
    folder: Path
    server: Server

    def sh(self, script: str) -> str:
        """Run a script of the page in the folder, with the address of this server."""
        script = script.replace("localhost:8080", f"localhost:{self.server.port}").replace("python3", sys.executable)
        script = script.replace('"bundle-2"', f'"{self.folder / "bundle-2"}"')
        run = ["sh", "-eu", "-c", script]
        completed = subprocess.run(run, cwd=self.folder, capture_output=True, text=True, check=False)
        assert completed.returncode == 0, completed.stderr + completed.stdout
        return completed.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Yield a server that the page's command starts, with the tokens that the page generates."""
    if not shutil.which("curl"):
        missing("curl")
    folder = tmp_path_factory.mktemp("page")
    [tokens] = [line for line in "".join(SHELL).splitlines() if line.endswith("> admin_tokens")][:1]
    write_bundle(
        folder / "bundle-2", make_graph(domain="ai.onnx"), window=512, buckets=[512]
    )  # changed bytes give another version
    subprocess.run(["sh", "-c", tokens.replace("python3", sys.executable)], cwd=folder, check=True)
    flag = f"--admin_tokens={folder / 'admin_tokens'}"
    with served(write_serving_bundle(folder / "bundle"), folder / "events.sqlite", flag) as running:
        yield Site(folder, running)


def test_every_command_accepts_the_flags_of_the_page() -> None:
    assert {kind for kind, _ in project_commands()} == set(KINDS.values())
    for kind, flags in project_commands():
        parsing.parse(kind, flags)


def test_every_flag_of_the_page_exists() -> None:
    fields = {field.metadata.get("flag", field.name) for kind in KINDS.values() for field in dataclasses.fields(kind)}
    others = {"help", "config", "gpus", "build-arg"}
    mentioned = set(re.findall(r"`--([\w-]+)", PROSE))
    assert mentioned <= fields | others
    assert {field.name for field in dataclasses.fields(ServeConfig)} - mentioned - {"bundle", "port"} == set()


def test_the_links_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", PAGE)
    assert links
    assert all((ROOT / "docs" / link).exists() for link in links)


def test_curl_requests_are_answered(site: Site) -> None:
    [suggest], [reload] = ([part for part in SHELL if name in part] for name in ("/v1/suggest", "/admin/reload"))
    answer = msgspec.json.decode(site.sh(suggest), type=schema.SuggestAnswer)
    assert answer.suggestions
    versions = [
        line["model_version"] for line in map(msgspec.json.decode, site.sh(reload).replace("}{", "}\n{").split())
    ]
    assert versions[1] == answer.model_version != versions[0]


def test_events_sent_from_python_are_exported(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    script = site.folder / "client.py"
    script.write_text(PYTHON.replace("http://localhost:8080", site.server.url))
    runpy.run_path(str(script))
    assert re.match(r"\d+% \w", capsys.readouterr().out)
    [export] = [part for part in SHELL if "events export" in part]
    call = f"{sys.executable} -m jaxtempl serve events export --store=sqlite:///events.sqlite"
    site.sh(f"export PYTHONPATH={ROOT}; {export.replace('bin/serve events export', call)}")
    rows = pyarrow.parquet.read_table(site.folder / "events.parquet").to_pylist()
    positions = {row["event"]: row["suggested_position"] for row in rows if row["advocate_id"] == "a-7"}
    assert positions == {"opened": None, "shown": None, "picked": 1}
    assert list(rows[0]) == SCHEMA.names


def test_the_tables_equal_the_code() -> None:
    request, answer = tables("field")
    assert {row[0] for row in request} == {f"`{name}`" for name in schema.SuggestRequest.__struct_fields__}
    assert {row[0] for row in answer} == {f"`{name}`" for name in schema.SuggestAnswer.__struct_fields__}
    [events], [columns], [backends], [statuses] = map(tables, ("event", "column", "`--backend`", "status"))
    assert names(events) == list(get_args(schema.EventName))
    assert sorted(names(columns)) == sorted(SCHEMA.names)
    assert names(backends) == list(get_args(get_type_hints(ServeConfig)["backend"]))
    assert {int(status) for row in statuses for status in row[0].split(", ")} == set(openapi.ERRORS)


def test_the_documented_metrics_are_those_of_the_server(server: Server) -> None:
    [rows] = tables("metric")
    documented = {name: set(names([row], 1)) for row in rows for name in names([row])}
    measured = exported(server)
    assert documented == {
        re.sub("_(bucket|sum|count)$", "", name): set(labels) - {"le"} for name, labels in measured.items()
    }


def test_the_page_states_the_settings() -> None:
    assert f"up to {store.MAX_WAITING:,} of them" in PAGE
    assert f"about every {1000 * store.GATHER:.0f} ms" in PAGE
    config: Any = ServeConfig()
    assert f"{config.drain_seconds} s for requests and {store.CLOSE + store.PATIENCE:.0f} for the store" in PAGE


def test_the_secret_of_the_page_equals_that_of_the_manifest() -> None:
    [words] = [words for words in commands() if words[:3] == ["kubectl", "create", "secret"]]
    secrets = [volume["secret"]["secretName"] for volume in POD["volumes"] if "secret" in volume]
    assert secrets == [words[4]]
    keys = {word.removeprefix("--from-file=") for word in words if word.startswith("--from-file=")}
    assert keys == set(re.findall(r"=/etc/jaxtempl/([\w.]+)", " ".join(CONTAINER["args"])))
    applied = [ROOT / word for words in commands() for word in words if word.startswith("deploy/")]
    assert applied
    assert all(path.exists() for path in applied)
