"""Sessions of ONNX Runtime: one place opens them, int8 never saturates, and versions that are too slow are refused."""

import ast
import logging
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from bundles import make_graph, write_bundle

from jaxtempl.bundle.bundle import Bundle
from jaxtempl.config.paths import ROOT
from jaxtempl.errors import UserError
from jaxtempl.serve.inference import backends, onnx_session, processor

PRECISION = "session.x64quantprecision"
X86 = "processor : 0\nmodel name : CPU {0}\nflags : fpu sse4_1 avx2 {0}\n\nprocessor : 1\nflags : amx_int8\n"
ARM = "processor : 0\nFeatures : fp asimd asimddp\n"


def use(cpuinfo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let this machine have another processor."""
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    monkeypatch.setattr(processor, "CPUINFO", path)
    return path


@pytest.mark.parametrize(
    ("cpuinfo", "expected", "vnni"),
    [
        (X86.format("avx512bw avx512_vnni amx_int8"), "amx_int8", True),
        (X86.format("avx512_vnni avx512bw"), "avx512_vnni", True),
        (X86.format("avx_vnni"), "avx_vnni", True),
        (X86.format("avx512bw"), "avx512bw", False),
        (X86.format("not_avx512_vnni"), "avx2", False),
        (ARM, "asimddp", False),
    ],
)
def test_the_first_processors_best_instructions_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpuinfo: str, expected: str, vnni: bool
) -> None:
    use(cpuinfo, tmp_path, monkeypatch)
    assert (processor.instruction_set(), processor.has_vnni()) == (expected, vnni)


def test_without_cpuinfo_the_architecture_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr("platform.processor", lambda: "")
    assert (processor.instruction_set(), processor.has_vnni(), processor.name()) == ("arm64", False, "arm64")


@pytest.mark.parametrize(("flags", "entry"), [("avx2", "1"), ("avx512bw", "1"), ("avx512_vnni", "0")])
def test_products_are_exact_and_as_fast_as_the_processor_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, entry: str
) -> None:
    use(X86.format(flags), tmp_path, monkeypatch)
    session = onnx_session.open_session(make_graph().SerializeToString())
    assert session.get_session_options().get_session_config_entry(PRECISION) == entry


def test_one_function_opens_sessions() -> None:
    opened = {
        path.relative_to(ROOT).as_posix()
        for package in ("jaxtempl", "converters", "bench")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("InferenceSession", "SessionOptions")
    }
    assert opened == {"jaxtempl/serve/inference/onnx_session.py"}


@pytest.mark.parametrize(
    ("facts", "refused"),
    [
        ({"dtype": "fp16", "form": "fused"}, True),
        ({"dtype": "fp16"}, True),
        ({"dtype": "tensorrt-int8", "form": "fused"}, True),
        ({"dtype": "fp16", "form": "plain"}, False),
        ({"dtype": "fp32", "form": "fused"}, False),
        ({"dtype": "int8", "form": "chunked"}, False),
    ],
)
@pytest.mark.parametrize(("version", "slow"), [("1.24.4", True), ("1.9.0", True), ("1.25.0", False), ("2.0.0", False)])
def test_versions_without_fast_fused_float16_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: dict[str, str], refused: bool, version: str, slow: bool
) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", make_graph(), **facts))
    monkeypatch.setattr(onnxruntime, "__version__", version)
    if not (refused and slow):
        assert backends.load_network(bundle)
        return
    with pytest.raises(UserError, match=rf"^ONNX Runtime {version} .*1\.25 or newer is needed: .*--form=plain$"):
        backends.load_network(bundle)


@pytest.mark.parametrize(("gated_on", "warned"), [("avx512_vnni", True), ("avx2", False), (None, False)])
def test_a_gate_on_another_processor_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, gated_on: str | None, warned: bool
) -> None:
    use(X86.format("bmi"), tmp_path, monkeypatch)
    facts = {"dtype": "int8", "quantize": {"machine": {"instruction_set": gated_on} if gated_on else {}}}
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", make_graph(), **facts))
    with caplog.at_level(logging.WARNING):
        backends.load_network(bundle)
    expected = f"{bundle.folder} passed its accuracy gate on a processor with avx512_vnni, and this one has avx2; "
    assert [record.getMessage().startswith(expected) for record in caplog.records] == [True] * warned
