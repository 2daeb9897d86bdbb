"""`bin/convert onnx` writes a verified bundle or nothing; suggestions with the bundle match the run's."""

import dataclasses
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tiny
from exported import TEMPLATES, export_bundle, run_with_dataset
from onnx_models import IDS, NEOX, SLOTS, noisy_params

from converters.__main__ import main
from converters.onnx import graph, layers
from converters.verify import localize
from converters.verify.flax_network import FlaxNetwork
from jaxtempl import cli, files
from jaxtempl.bundle import onnx_check
from jaxtempl.bundle.bundle import Bundle
from jaxtempl.commands import suggest
from jaxtempl.config.paths import ROOT
from jaxtempl.errors import UserError
from jaxtempl.runs.run import Run
from jaxtempl.serve.inference.suggester import bundle_suggester
from jaxtempl.text.cases import Message

MESSAGES = [
    {"role": "customer", "text": "hi <|endoftext|>"},
    {"role": "system", "text": "  "},
    {"role": "advocate", "text": "Hello, naïve 🙂!"},
    {"role": "customer", "text": "my card\n" * 9},
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_with_dataset(tmp_path_factory.mktemp("export"))[0]


@pytest.fixture(scope="module")
def served(source: Run) -> Bundle:
    return export_bundle(source, source.folder.parent / "bundle")


@pytest.fixture
def case(tmp_path: Path) -> Path:
    path = tmp_path / "case.json"
    path.write_text(json.dumps({"messages": MESSAGES}))
    return path


def test_the_bundle_is_verified_and_records_the_result(source: Run, served: Bundle) -> None:
    facts = served.manifest
    assert sorted(path.name for path in served.folder.iterdir()) == [
        "bundle.json", "model.onnx", "templates.json", "tokenizer.json"
    ]  # fmt: skip
    assert served.templates == TEMPLATES
    assert (facts["head"], facts["dtype"], facts["window"], facts["buckets"], facts["slots"]) == (
        "template", "fp32", 32, [32], 7
    )  # fmt: skip
    assert facts["run"]["step"] == 3
    assert facts["run"]["datasets"] == list(source.manifest["datasets"].values())
    found = facts["verify"]
    made = found["made"]["32"]  # of the ids that no real context has
    assert 200 < made <= 8192 / 32
    assert (found["contexts"], found["real"], found["compared"]) == (20 + made, {"32": 20}, 2 * (20 + made))
    assert (found["top1"], found["top5"], found["not_finite"]) == (1, 1, 0)
    assert 0 < found["largest_difference"] < 1e-5 * found["largest_logit"]


def test_overwrite_replaces_only_a_bundle(source: Run, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    first = export_bundle(source, out)
    with pytest.raises(UserError, match="exists already"):
        export_bundle(source, out)
    again = export_bundle(source, out, overwrite=True, form="plain")
    assert first.manifest["version"] != again.manifest["version"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(UserError, match="is not a bundle, so --overwrite does not replace it"):
        export_bundle(source, source.folder, overwrite=True)


def test_the_bundle_contains_no_customer_text(served: Bundle) -> None:
    held = b"".join(path.read_bytes() for path in served.folder.iterdir() if path.name != "tokenizer.json")
    for text in ("I want my money back", "my card was stolen", str(ROOT), str(served.folder.parent)):
        assert text.encode() not in held


@pytest.mark.parametrize("flags", [{"dtype": "fp16"}, {"dtype": "fp16", "wide_residual": True}, {"form": "plain"}])
def test_every_dtype_and_form_is_verified(source: Run, tmp_path: Path, flags: dict[str, Any]) -> None:
    opened = export_bundle(source, tmp_path / "out", **flags)
    facts = opened.manifest
    assert onnx_check.embedding_rows(onnx_check.load_graph(opened.model)) == 8192
    assert {key: facts[key] for key in flags} == flags
    assert facts["verify"]["top1"] > 0.9


def test_a_language_model_has_logits_at_every_token(tmp_path: Path) -> None:
    source, data = run_with_dataset(tmp_path, [])
    found = export_bundle(source, tmp_path / "out", verify_contexts=6, head="lm", data=str(data))
    assert (found.manifest["head"], found.manifest["slots"], found.templates) == ("lm", 8192, [])
    assert found.manifest["verify"]["compared"] > 100
    with pytest.raises(UserError, match="is a language model, which knows no templates"):
        bundle_suggester(found)


def test_suggestions_and_temperature_match_the_run(source: Run, tmp_path: Path) -> None:
    calibration = source.folder / "calibration.json"
    calibration.write_text(json.dumps({"steps": {"3": {"temperature": 2.5, "count": 9}}}))
    try:
        found = bundle_suggester(export_bundle(source, tmp_path / "out", slots=16))
        messages = [Message(m["role"], m["text"]) for m in MESSAGES if m["text"].strip()]
        expected, actual = (s.suggest(messages, 9) for s in (suggest.run_suggester(source, 3), found))
    finally:
        calibration.unlink()
    assert [s.template for s in actual.suggestions] == [s.template for s in expected.suggestions]
    assert len(actual.suggestions) == 6, "retired and padding slots are never suggested"
    np.testing.assert_allclose(
        [s.probability for s in actual.suggestions], [s.probability for s in expected.suggestions], rtol=1e-4
    )
    assert (actual.tokens, actual.dropped_messages) == (expected.tokens, expected.dropped_messages)


def test_suggest_and_the_example_print_the_same_suggestions(served: Bundle, case: Path, capsys: Any) -> None:
    suggest.main([f"--bundle={served.folder}", "--json", str(case)])
    value = json.loads(capsys.readouterr().out)
    assert (value["bundle"], value["version"]) == (str(served.folder), served.manifest["version"])
    example = subprocess.run(
        [sys.executable, "-c", ALONE, str(ROOT / "examples" / "suggest_onnx.py"), str(served.folder), str(case)],
        capture_output=True, text=True, check=True, cwd=case.parent, env=os.environ | {"PYTHONPATH": ""},
    )  # fmt: skip
    lines = [line.split("  ") for line in example.stdout.strip().splitlines()]
    assert [name for *_, name, _ in lines] == [s["template"] for s in value["suggestions"]]
    shares = [float(line[-3].strip(" %")) for line in lines]
    assert shares == [pytest.approx(100 * s["probability"], abs=0.051) for s in value["suggestions"]]


ALONE = """
import runpy, sys
class Alone:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {"jaxtempl", "converters", "jax", "flax", "torch", "transformers", "onnx"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Alone())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0])
"""


@pytest.mark.parametrize(("flags", "entry"), [("avx2", "1"), ("avx512bw avx512_vnni", "0")])
def test_the_example_adds_products_of_int8_exactly(
    served: Bundle, case: Path, monkeypatch: pytest.MonkeyPatch, flags: str, entry: str
) -> None:
    cpuinfo, example = case.with_name("cpuinfo"), case.with_name("example.py")
    cpuinfo.write_text(f"flags : sse4_1 not_avx_vnni {flags}\n")
    example.write_text((ROOT / "examples" / "suggest_onnx.py").read_text().replace("/proc/cpuinfo", str(cpuinfo)))
    monkeypatch.setattr("sys.argv", ["example.py", str(served.folder), str(case)])
    options = runpy.run_path(str(example))["options"]
    assert options.get_session_config_entry("session.x64quantprecision") == entry


def test_fused_float16_is_refused_on_older_versions_before_anything_is_built(
    source: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.24.4")
    for flag in ("--dtype=fp16", "--quantize=int8", "--quantize=tensorrt-int8"):
        assert cli.run(main, ["onnx", f"--run={source.folder}", f"--out={tmp_path / 'out'}", flag]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ONNX Runtime 1.24.4 takes seconds")
        assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_example_refuses_fused_float16_on_older_versions(
    served: Bundle, case: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(served.folder, case.with_name("bundle"))
    files.write_json(folder / "bundle.json", {**served.manifest, "dtype": "fp16", "form": "fused"})
    monkeypatch.setattr("sys.argv", ["suggest_onnx.py", str(folder), str(case)])
    monkeypatch.setattr("onnxruntime.__version__", "1.24.4")
    with pytest.raises(SystemExit, match=r"1\.24\.4 takes seconds .* install 1\.25 or newer"):
        runpy.run_path(str(ROOT / "examples" / "suggest_onnx.py"))


def test_a_network_that_differs_from_the_run_is_not_written(
    source: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    real = graph.build

    def broken(params: Any, *rest: Any) -> ir.Model:
        up = params["blocks"]["mlp"]["up"] | {"kernel": params["blocks"]["mlp"]["up"]["kernel"] * 3}
        blocks = params["blocks"] | {"mlp": params["blocks"]["mlp"] | {"up": up}}
        return real(params | {"blocks": blocks}, *rest)

    monkeypatch.setattr(graph, "build", broken)
    assert cli.run(main, ["onnx", f"--run={source.folder}", f"--out={tmp_path / 'out'}", "--verify_contexts=20"]) == 1
    error = capsys.readouterr().err
    assert "does not match" in error
    assert "first diverge at block_0" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("layer", "message"), [(0, "block_0"), (1, "block_1"), (None, "the head")])
def test_the_first_diverging_layer_is_named(tmp_path: Path, layer: int | None, message: str) -> None:
    """One weight of a two-layer model is changed."""
    a = dataclasses.replace(NEOX, layers=2)
    params = noisy_params(a, SLOTS, 0.1)
    name = "head" if layer is None else f"block_{layer}/down/kernel"
    network = FlaxNetwork(params, a, "template")
    ids = IDS[:1]
    for kind in ("fp32", "fp16"):
        ir.save(graph.build(params, a, layers.GraphOptions("template", kind)), tmp_path / "model.onnx")
        model = onnx.load(tmp_path / "model.onnx")
        (weight,) = (t for t in model.graph.initializer if t.name == name)
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 2, name))
        onnx.save(model, tmp_path / "model.onnx")
        found = localize.first_diverging_layer(
            tmp_path / "model.onnx", ids[0].tolist(), network.residuals(ids), kind, network.head_position
        )
        assert found.startswith(message)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--head=lm"], "with the head template"),
        (["--slots=3"], "less than the run's 7 templates"),
        (["--data=nowhere"], "is not a dataset"),
        (["--run=nowhere"], "is not a run"),
        (["--run="], "no run is named"),
        (["--out=."], "exists already"),
    ],
)
def test_wrong_flags_print_one_line(source: Run, flags: list[str], message: str, capsys: Any) -> None:
    assert cli.run(main, ["onnx", f"--run={source.folder}", *flags]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_dataset_is_an_error(tmp_path: Path) -> None:
    source = tiny.make_run(tmp_path / "run", TEMPLATES, datasets={"/gone/data": "x"})
    with pytest.raises(UserError, match="is missing, and a bundle is verified on real contexts"):
        export_bundle(source, tmp_path / "out")


def test_a_killed_conversion_leaves_no_bundle(source: Run, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "converters", "onnx", f"--run={source.folder}", f"--out={tmp_path / 'out'}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".out.*.partial/model.onnx")) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="is not a bundle"):
        Bundle.open(next(tmp_path.glob(".out.*.partial")))


def test_a_full_disk_prints_one_line_and_leaves_no_file(source: Run, tmp_path: Path) -> None:
    small = ["sh", "-c", 'ulimit -f 512; exec "$@"', "sh"]  # files are limited to 256 kB
    command = [sys.executable, "-m", "converters", "onnx", f"--run={source.folder}", f"--out={tmp_path / 'out'}"]
    done = subprocess.run([*small, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
