"""docs/production.md and docs/triton.md: the commands parse, and the parts that need no GPU run."""

import ast
import json
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from triton_models import PB2, TEMPLATES, convert, make_bundle, save_network

from converters.__main__ import CONVERTERS
from converters.triton import config
from jaxtempl.config import parsing
from jaxtempl.config.converting import ConvertTritonConfig
from jaxtempl.config.paths import ROOT
from jaxtempl.specs.accelerators import ACCELERATORS

PAGE = "\n".join((ROOT / "docs" / name).read_text() for name in ("production.md", "triton.md"))
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.S)
KINDS = {name: kind for name, (_, kind) in CONVERTERS.items()}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("network"))


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.replace("\\\n", ""), re.S)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]


def test_every_converter_accepts_its_flags() -> None:
    lines = [words for words in commands() if words[0] == "bin/convert"]
    assert {words[1] for words in lines} == {"onnx", "tensorrt", "triton"}
    for words in lines:
        if words[1] in KINDS:
            parsing.parse(KINDS[words[1]], words[2:])


def test_each_command_uses_the_output_of_the_one_before() -> None:
    """The pages mount the default repository, load the default model and use one Triton release."""
    text = " ".join(" ".join(words) for words in commands())
    expected = ConvertTritonConfig()
    assert f"-v $PWD/{expected.out}:/models:ro" in text
    assert set(re.findall(r"--load-model=(\S+)", text)) == {expected.name}
    assert set(re.findall(r"/models/([\w-]+)/(?:ready|infer|load)", text)) == {expected.name}
    assert f"-m {expected.name} " in text
    assert len(set(re.findall(r"tritonserver:(\d\d\.\d\d)-py3", text))) == 1, "one release of Triton"


def test_the_links_have_targets() -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGE):
        assert (ROOT / "docs" / link).exists()
    headings = {
        re.sub(r"[^a-z -]", "", line[3:].lower()).replace(" ", "-") for line in re.findall("^## .*", PAGE, re.M)
    }
    assert set(re.findall(r"\]\([^)#:]*#([^)]+)\)", PAGE)) <= headings


def test_the_pages_request_runs(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model_config = convert(make_bundle(tmp_path / "bundle", network, TEMPLATES, buckets=[64]), tmp_path / "models")
    (tmp_path / "ask.py").write_text(PYTHON[0])
    runpy.run_path("ask.py")
    request = json.loads(Path("request.json").read_text())
    feeds = {given["name"]: np.array(given["data"], np.int32).reshape(given["shape"]) for given in request["inputs"]}
    declared = {given.name: given for given in model_config.input}
    assert {given["datatype"] for given in request["inputs"]} == {"INT32"}
    for name, array in feeds.items():
        assert declared[name].data_type == PB2.TYPE_INT32
        assert list(declared[name].dims) in ([-1], list(array.shape[1:]))
    session = onnxruntime.InferenceSession("models/templates/1/model.onnx", providers=["CPUExecutionProvider"])
    (padded,) = session.run(["logits"], feeds)
    length = feeds["lengths"].item()
    (bare,) = session.run(["logits"], {"input_ids": feeds["input_ids"][:, :length], "lengths": feeds["lengths"]})
    np.testing.assert_allclose(padded, bare, rtol=1e-4, atol=1e-5)
    assert [given["name"] for given in request["outputs"]] == [output.name for output in model_config.output]


def test_the_other_client_reads_the_same_request() -> None:
    ast.parse(PYTHON[1])
    assert "request.json" in PYTHON[1]
    assert len(PYTHON) == 2


@pytest.mark.parametrize(
    "row", re.findall(r"^\| (\S+b|\S+m) \| (\S+) \| (\d+) ms \| (\d+) ms \| (\d+) % \|$", PAGE, re.M)
)
def test_the_tables_times_follow_from_the_flops(row: tuple[str, ...]) -> None:
    milliseconds = float(row[1].replace(",", "")) * 1e9 / (0.4 * ACCELERATORS["a10"].peak) * 1000
    stated = [int(value) for value in row[2:]]
    maximum: Any = ConvertTritonConfig().max_batch_size
    assert stated == [round(milliseconds), round(maximum * milliseconds), round(20 * milliseconds / 10)]


def test_the_page_states_the_configuration() -> None:
    expected = ConvertTritonConfig()
    assert f"**{expected.timeout_ms} ms in the queue** (`--timeout_ms`)" in PAGE
    assert f"At most {config.MAX_QUEUE_SIZE} requests wait" in PAGE
    assert f"**{config.QUEUE_DELAY_MICROSECONDS // 1000} ms of queueing delay.**" in PAGE
    assert expected.max_batch_size == 4
    assert "**Batches of at most four** (`--max_batch_size`)" in PAGE
