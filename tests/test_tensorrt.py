import dataclasses
import functools
import json
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_gpu
import jax
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import tiny
from onnx import TensorProto, helper, numpy_helper

from converters.onnx import graph as onnx_graph
from converters.onnx.layers import GraphOptions
from converters.tensorrt import check, convert, engine, refit
from converters.tensorrt.engine import BuildConfig
from jaxtempl import files
from jaxtempl.bundle import bundle
from jaxtempl.bundle.bundle import Bundle
from jaxtempl.config import parsing, paths
from jaxtempl.config.converting import ConvertTensorrtConfig
from jaxtempl.config.paths import ASSETS
from jaxtempl.errors import UsageError, UserError
from jaxtempl.models import factory
from jaxtempl.serve.inference import tensorrt
from jaxtempl.serve.inference.backends import OnnxRuntime
from jaxtempl.serve.inference.tensorrt import Engine, Machine
from jaxtempl.specs.architecture import NeoXArchitecture
from jaxtempl.text.case_files import read_cases

rtx = pytest.importorskip("tensorrt_rtx_bindings", reason="tensorrt-rtx has wheels for Linux on x86-64 alone")

ARCHITECTURE = NeoXArchitecture(layers=2, hidden=64, heads=4, feed_forward=64, vocabulary=8192, positions=64)
BUCKETS = [16, 64]
SM86 = BuildConfig(BUCKETS, 2, compute_capability="8.6")


@functools.cache
def params(seed: int = 0) -> Any:
    slots = len(tiny.REPLIES)
    return jax.tree.map(lambda leaf: leaf * 4, factory.random_params(ARCHITECTURE, slots, seed))


def model(folder: Path, options: GraphOptions, weights: Any = None, external: str | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    graph = onnx_graph.build(params() if weights is None else weights, ARCHITECTURE, options)
    ir.save(graph, folder / "model.onnx", external_data=external)
    return folder / "model.onnx"


def fp16(**changes: Any) -> GraphOptions:
    return GraphOptions(**{"head": "template", "dtype": "fp16", "slots": 6, **changes})


def made(out: Path, weights: Any = None, **changes: Any) -> Bundle:
    """Write and open an ONNX bundle of four templates."""
    with files.atomic_folder(out) as folder:
        model(folder, fp16(**changes), weights)
        (folder / "tokenizer.json").write_text((ASSETS / "nano" / "tokenizer.json").read_text())
        templates = [tiny.template(slot, name) for slot, name in enumerate(tiny.REPLIES)]
        files.write_json(folder / "templates.json", [dataclasses.asdict(template) for template in templates])
        facts = {"model": "model.onnx", "head": "template", "dtype": "fp16", "window": 64, "role_tags": False}
        facts |= {"special_tokens": 0, "temperature": 1.0, "slots": 6, "buckets": BUCKETS, "run": {}, "verify": {}}
        bundle.write_manifest(folder, facts | {"head": changes.get("head", "template")})
    return Bundle.open(out)


def cases(folder: Path, count: int = 6) -> str:
    lines = [json.dumps({"messages": tiny.case(i, "refund")["messages"][: 1 + i % 5]}) for i in range(count)]
    (folder / "cases.jsonl").write_text("\n".join(lines))
    return str(folder / "cases.jsonl")


def configured(tmp_path: Path, **changes: Any) -> ConvertTensorrtConfig:
    cases(tmp_path)
    known = {"bundle": "in use", "cases": str(tmp_path / "cases.jsonl"), "out": tmp_path / "engine"}
    return ConvertTensorrtConfig(**{**known, "max_batch_size": 2, "verify_contexts": 8, **changes})


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """An ONNX bundle and the engine built from it on `machine()`; tests only read both."""
    folder = tmp_path_factory.mktemp("old")
    opened = made(folder / "bundle", with_head(0))
    convert.convert(opened, configured(folder), machine())
    return opened, Bundle.open(folder / "engine")


def machine(**changes: Any) -> Machine:
    return Machine.of(fake_gpu.Trt(rtx, **changes), fake_gpu.Cuda())


def session(path: Path, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    found = onnxruntime.InferenceSession(path).run(["logits"], {"input_ids": ids, "lengths": lengths[:, None]})
    return np.asarray(found[0])


IDS = np.random.default_rng(0).integers(2, 8192, (5, 16)).astype(np.int32)
LENGTHS = np.array([1, 16, 7, 2, 15], np.int32)


def test_the_fused_form_builds_each_attention_in_one_kernel(tmp_path: Path) -> None:
    found = check.check(rtx, model(tmp_path, fp16()), SM86)
    assert found.native == {"attention": 2, "rotary": 4, "layer norm": 5}
    assert found.unfused == []
    assert sum(found.attention.values()) == 2, "includes the last block's single query with its mask"
    assert found.operators["Attention"].nodes == 2
    assert found.operators["MatMul"].nodes == 2 * 6 + 1
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert sum(use.nodes for use in found.operators.values()) == len(graph.node)
    assert {node for kernel in found.kernels for node in kernel.nodes} <= {node.name for node in graph.node}
    text = check.format_report(found)
    assert "compute capability 8.6" in text
    assert "attention in one kernel: 2 of 2" in text


def test_the_plain_form_builds_in_float32_and_reports_unfused_nodes(tmp_path: Path) -> None:
    found = check.check(rtx, model(tmp_path, fp16(dtype="fp32", form="plain")), SM86)
    assert found.native == {"attention": 0, "rotary": 0, "layer norm": 5}
    assert sum(found.attention.values()) + len(found.unfused) == 2
    assert found.unfused, "tensorrt_rtx has no kernel for causal attention in float32"
    assert all(name.startswith("block_0/Softmax") for name in found.unfused)
    assert found.unfused[0] in check.format_report(found)


@pytest.mark.parametrize("options", [fp16(form="plain"), fp16(wide_residual=True), fp16(head="lm", slots=0)], ids=str)
def test_other_forms_of_the_graph_are_built(tmp_path: Path, options: GraphOptions) -> None:
    found = check.check(rtx, model(tmp_path, options), dataclasses.replace(SM86, buckets=[16]))
    assert found.bytes > 0
    assert found.kernels


def test_quantize_and_dequantize_nodes_are_accepted(tmp_path: Path) -> None:
    path = model(tmp_path, fp16())
    quantize(path, "block_0/up")
    found = check.check(rtx, path, dataclasses.replace(SM86, buckets=[16]))
    assert found.operators["DequantizeLinear"].nodes == 2


def quantize(path: Path, name: str) -> None:
    """Quantize the inputs of one product to int8, with arbitrary scales."""
    model_proto = onnx.load(path)
    at = next(i for i, node in enumerate(model_proto.graph.node) if node.name == name)
    node, scale = model_proto.graph.node[at], "quantize_scale"
    model_proto.graph.initializer.append(numpy_helper.from_array(np.float16(0.02), scale))
    model_proto.graph.initializer.append(numpy_helper.from_array(np.int8(0), "zero"))
    nodes = []
    for i, given in enumerate(list(node.input)):
        nodes.append(helper.make_node("QuantizeLinear", [given, scale, "zero"], [f"q{i}"], name=f"quantize{i}"))
        nodes.append(helper.make_node("DequantizeLinear", [f"q{i}", scale, "zero"], [f"d{i}"], name=f"dequantize{i}"))
        node.input[i] = f"d{i}"
    for new in reversed(nodes):
        model_proto.graph.node.insert(at, new)
    onnx.save(model_proto, path)


def test_the_error_for_fused_attention_in_float32_suggests_fp16(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dedicated kernel.*--dtype=fp16") as caught:
        check.check(rtx, model(tmp_path, fp16(dtype="fp32")), SM86)
    assert "\n" not in str(caught.value)


def test_unsupported_operators_are_listed_in_a_one_line_error(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["input_ids"], ["q", "s", "z"], name="dynamic"),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["logits"], name="product"),
    ]
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.FLOAT, ["batch", 8])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.INT32, ["batch", 4])]
    weight = numpy_helper.from_array(np.ones((8, 4), np.uint8), "w")
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    with pytest.raises(UserError) as caught:
        check.check(rtx, tmp_path / "m.onnx", SM86)
    message = f"TensorRT does not support DynamicQuantizeLinear (dynamic), MatMulInteger (product) in {tmp_path}/m.onnx"
    assert str(caught.value) == message


def test_the_error_for_an_unknown_compute_capability_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--compute_capability=8.7 is unknown.* 7.5, 8.0, 8.6, 8.9"):
        check.check(rtx, model(tmp_path, fp16()), dataclasses.replace(SM86, compute_capability="8.7"))


def test_the_command_checks_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path / "bundle")
    convert.main(
        parsing.parse(ConvertTensorrtConfig, [f"--bundle={tmp_path / 'bundle'}", "--check", "--max_batch_size=1"])
    )
    assert "attention in one kernel: 2 of 2" in capsys.readouterr().out


def test_a_plan_in_another_format_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = engine.BuiltPlan(b"main {\n other\n}\n", Counter(), 0.0, 0.0)
    monkeypatch.setattr(engine, "build", lambda *_: built)
    with pytest.raises(UserError, match=r"cannot be read, only that of 1\.7"):
        check.check(rtx, tmp_path / "model.onnx", SM86)


def test_operators_are_counted_by_how_the_plan_executes_them() -> None:
    kinds = {"a": "Add", "b": "Add", "c": "Add", "d": "Add", "s": "Softmax", "t": "Softmax"}
    kernels = [("one", ("a", "s")), ("two", ("b",)), ("three", ("c",)), ("four", ("c", "s")), ("_mha", ("t", "t"))]
    found = check.count_nodes(kinds, [check.PlanKernel(*kernel) for kernel in kernels])
    assert found == {"Add": (4, 1, 1, 1, 1), "Softmax": (2, 0, 1, 1, 0)}


def test_the_completed_share_counts_nested_steps() -> None:
    assert engine.completed_share([[4, 2], [2, 1]]) == 2 / 4 + 1 / 4 * 1 / 2
    assert engine.completed_share([]) == 0
    assert engine.completed_share([[1, 1]]) == 1


def test_progress_never_decreases_and_control_c_stops_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, shares = model(tmp_path, fp16()), list[float]()

    class Bar:
        n = 0.0

        def __init__(self, **_: Any) -> None: ...
        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None: ...
        def update(self, more: float) -> None:
            self.n += more
            shares.append(self.n)

    monkeypatch.setattr(engine, "tqdm", Bar)
    engine.build(rtx, path, dataclasses.replace(SM86, buckets=[16]))
    assert shares == sorted(shares)
    assert 0.5 < shares[-1] <= 1
    shares_seen = list[float]()

    def stop(self: Bar, more: float) -> None:
        shares_seen.append(more)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Bar, "update", stop)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        engine.build(rtx, path, dataclasses.replace(SM86, buckets=[16]))
    assert len(shares_seen) < len(shares), "the build stops before it is complete"
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops")
def test_the_timing_cache_is_saved_to_a_file(tmp_path: Path) -> None:
    path, timing = model(tmp_path, fp16()), tmp_path / "timing" / "cache"
    expected = dataclasses.replace(SM86, buckets=[16], timing_cache=timing)
    engine.build(rtx, path, expected)
    assert timing.stat().st_size > 0
    engine.build(rtx, path, expected)
    assert [p.name for p in timing.parent.iterdir()] == ["cache"]


def test_an_engine_is_built_verified_and_loaded(tmp_path: Path) -> None:
    opened, here = made(tmp_path / "bundle"), machine()
    convert.convert(opened, configured(tmp_path), here)
    found = Bundle.open(tmp_path / "engine")
    assert (found.manifest["model"], found.model.name) == ("model.plan", "model.plan")
    facts = found.manifest["engine"]
    assert {key: facts[key] for key in ("gpu", "compute_capability", "tensorrt")} == here.facts()
    assert here.facts() == {"gpu": "NVIDIA A10", "compute_capability": "8.6", "tensorrt": "11.4.1"}
    assert facts["profiles"] == [{"length": 16, "batch": 2}, {"length": 64, "batch": 2}]
    assert facts["refittable"] == ["head", "head/bias"]
    assert facts["bundle"] == opened.manifest["version"] != found.manifest["version"]
    assert found.manifest["verify"]["top1"] == 1
    assert found.manifest["verify"]["made"], "synthetic contexts fill the last bucket, which no case reaches"
    assert here.trt.network_flags == [1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)], (
        "TensorRT 10 requires the flag"
    )
    kept = ("window", "slots", "temperature", "buckets", "dtype", "head", "role_tags")
    assert [found.manifest[key] for key in kept] == [opened.manifest[key] for key in kept]
    with tensorrt.load_engine(found, here) as loaded:
        np.testing.assert_array_equal(loaded(IDS, LENGTHS), session(opened.model, IDS, LENGTHS))
    assert (here.cuda.memory, here.cuda.streams) == ({}, 0), "all memory and streams are released"


def test_no_customer_text_is_in_an_engine(old: tuple[Bundle, Bundle]) -> None:
    for path in old[1].folder.iterdir():
        if path.name != "tokenizer.json":
            assert b"I want my money back" not in path.read_bytes()


def test_an_engine_with_other_logits_is_rejected_and_leaves_no_files(
    tmp_path: Path, old: tuple[Bundle, Bundle]
) -> None:
    config = configured(tmp_path, refit=str(old[1].folder))  # a refit builds no engine
    with pytest.raises(UserError, match=r"the engine is not what .*bundle is: .*Nothing was written"):
        convert.convert(old[0], config, machine(worse=100.0))
    assert [p.name for p in tmp_path.iterdir()] == ["cases.jsonl"]


def test_rows_are_padded_to_a_profile_and_run_in_batches(old: tuple[Bundle, Bundle]) -> None:
    opened, built = old
    reference = OnnxRuntime(opened.model)
    with tensorrt.load_engine(built, machine()) as loaded:
        assert (loaded.batch, loaded.lengths, loaded.slots) == (2, BUCKETS, 6)
        for length in (1, 16, 17, 64):
            ids = np.resize(IDS, (5, length))
            lengths = np.minimum(LENGTHS, length).astype(np.int32)
            np.testing.assert_allclose(loaded(ids, lengths), reference(ids, lengths), atol=2e-3)
        with pytest.raises(ValueError, match="65 tokens exceed the 64"):
            loaded(np.zeros((1, 65), np.int32), np.ones(1, np.int32))


def test_an_engine_for_another_gpu_or_version_is_rejected(old: tuple[Bundle, Bundle]) -> None:
    here = "NVIDIA A10 (compute capability 8.6), TensorRT 11.4.1"
    for gpu, version, found_here in (
        (("NVIDIA L4", 8, 9), "11.4.1", "NVIDIA L4 (compute capability 8.9), TensorRT 11.4.1"),
        (("NVIDIA A10", 8, 6), "10.15.1", "NVIDIA A10 (compute capability 8.6), TensorRT 10.15.1"),
    ):
        with pytest.raises(UserError) as caught:
            tensorrt.load_engine(old[1], Machine.of(fake_gpu.Trt(rtx, version), fake_gpu.Cuda(*gpu)))
        assert f"was built for {here}; this is {found_here}; build an engine here" in str(caught.value)


@pytest.mark.parametrize("profiles", [None, [], [{"length": 16}], [{"length": "16", "batch": 2}], "16"])
def test_a_manifest_without_valid_profiles_is_rejected(tmp_path: Path, profiles: Any) -> None:
    here = machine()
    manifest = {"model": "model.plan", "engine": {**here.facts(), "profiles": profiles}}
    with pytest.raises(UserError, match="has no TensorRT engine"):
        tensorrt.load_engine(Bundle(tmp_path, manifest, []), here)


def test_a_missing_gpu_or_package_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="CUDA failed: no CUDA-capable device is detected; check the NVIDIA GPU"):
        Machine.of(fake_gpu.Trt(rtx), fake_gpu.Cuda(error=100))

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(tensorrt, "importlib", SimpleNamespace(import_module=missing))
    with pytest.raises(UserError, match=r"No module named 'tensorrt'; .* requirements-tensorrt.txt"):
        Machine.here()
    monkeypatch.setattr(check, "importlib", SimpleNamespace(import_module=missing))
    with pytest.raises(UserError, match=r"tensorrt_rtx is missing; pip install"):
        check.import_tensorrt_rtx()


def test_a_broken_plan_leaves_no_gpu_memory_allocated() -> None:
    here = machine()
    with pytest.raises(UserError, match="TensorRT cannot load the plan: the plan is not one"):
        Engine(here, b"noise", [{"length": 16, "batch": 2}])
    assert here.cuda.memory == {}


def with_head(seed: int, trunk: int = 0) -> Any:
    """Return the trunk of one training with the head of another."""
    return {**params(trunk), "head": params(seed)["head"]}


def test_the_old_graph_with_the_new_head_gives_the_new_logits(tmp_path: Path) -> None:
    old, new = (model(tmp_path / str(seed), fp16(), with_head(seed)) for seed in (0, 1))
    model_proto = onnx.load(old)
    weights = refit.head_weights(new)
    assert list(weights) == ["head", "head/bias"]
    for weight in model_proto.graph.initializer:
        if weight.name in weights:
            weight.CopyFrom(numpy_helper.from_array(weights[weight.name], weight.name))
    onnx.save(model_proto, tmp_path / "refitted.onnx")
    want = session(new, IDS, LENGTHS)
    np.testing.assert_array_equal(session(tmp_path / "refitted.onnx", IDS, LENGTHS), want)
    assert np.abs(want - session(old, IDS, LENGTHS)).max() > 0.1


def test_only_the_head_is_refittable_in_the_network(tmp_path: Path) -> None:
    path = model(tmp_path, fp16())
    log = tensorrt.error_logger(rtx)
    builder = rtx.Builder(log)
    network = builder.create_network(0)
    parser = rtx.OnnxParser(network, log)
    assert parser.parse_from_file(str(path))
    settings = builder.create_builder_config()
    engine.mark_refittable(rtx, network, settings, refit.refittable_weights(path))
    assert settings.get_flag(rtx.BuilderFlag.REFIT_INDIVIDUAL)
    names = {weight.name for weight in onnx.load(path).graph.initializer}
    assert {name for name in names if network.are_weights_marked_refittable(name)} == {"head", "head/bias"}
    with pytest.raises(UserError, match="finds no refittable weights tail"):
        engine.mark_refittable(rtx, network, settings, ["tail"])
    assert refit.refittable_weights(model(tmp_path, fp16(slots=0))) == []


def test_a_refitted_engine_gives_the_new_bundles_logits(tmp_path: Path, old: tuple[Bundle, Bundle]) -> None:
    new, here = made(tmp_path / "new", with_head(1)), machine()
    convert.convert(new, configured(tmp_path, refit=str(old[1].folder), out=tmp_path / "refitted"), here)
    found = Bundle.open(tmp_path / "refitted")
    assert found.manifest["engine"]["bundle"] == new.manifest["version"]
    assert found.manifest["engine"]["refitted"] == old[1].manifest["version"]
    with tensorrt.load_engine(found, here) as loaded:
        np.testing.assert_array_equal(loaded(IDS, LENGTHS), session(new.model, IDS, LENGTHS))
    convert.convert(old[0], configured(tmp_path, refit=str(found.folder), out=tmp_path / "again"), here)
    with tensorrt.load_engine(Bundle.open(tmp_path / "again"), here) as loaded:
        np.testing.assert_array_equal(loaded(IDS, LENGTHS), session(old[0].model, IDS, LENGTHS))


def test_a_refitted_engine_cannot_be_refitted_again_before_tensorrt_10_14(
    tmp_path: Path, old: tuple[Bundle, Bundle]
) -> None:
    here = machine(again=False)
    convert.convert(old[0], configured(tmp_path, refit=str(old[1].folder), out=tmp_path / "refitted"), here)
    again = configured(tmp_path, refit=str(tmp_path / "refitted"), out=tmp_path / "again")
    with pytest.raises(UserError, match="its head is fixed"):
        convert.convert(old[0], again, here)


def test_a_refit_is_rejected_if_more_than_the_head_differs(tmp_path: Path, old: tuple[Bundle, Bundle]) -> None:
    for name, weights, changes, message in (
        ("trunk", with_head(0, trunk=1), {}, "differs from .*engine in more than its head"),
        ("slots", None, {"slots": 7}, "the graph of .* differs from that of"),
        ("form", None, {"form": "plain"}, "the graph of .* differs from that of"),
    ):
        other = made(tmp_path / name, weights, **changes)
        with pytest.raises(UserError, match=message):
            convert.convert(other, configured(tmp_path, refit=str(old[1].folder), out=tmp_path / "out"), machine())
    assert not (tmp_path / "out").exists()


def test_an_engine_without_spare_slots_has_a_fixed_head(old: tuple[Bundle, Bundle]) -> None:
    opened, built = old
    manifest = {**built.manifest, "engine": {**built.manifest["engine"], "refittable": []}}
    with pytest.raises(UserError, match=r"its head is fixed \(--slots\)"):
        refit.check(dataclasses.replace(built, manifest=manifest), opened)


def test_digests_do_not_depend_on_where_weights_are_stored(tmp_path: Path) -> None:
    inline, apart = model(tmp_path / "a", fp16()), model(tmp_path / "b", fp16(), external="data")
    assert refit.graph_digests(inline) == refit.graph_digests(apart)
    model_proto = onnx.load(inline)
    node = next(node for node in model_proto.graph.node if node.op_type == "Attention")
    next(a for a in node.attribute if a.name == "scale").f = 0.5
    onnx.save(model_proto, inline)
    assert refit.graph_digests(inline).graph != refit.graph_digests(apart).graph
    assert refit.graph_digests(inline).trunk == refit.graph_digests(apart).trunk


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not a case: not JSON: Expecting property name"),
        ("[]", "line 2 is not a case: wrong type"),
        ('{"messages": []}', "line 2 is not a case: empty case"),
        ('{"messages": [{"role": "robot", "text": "hi"}]}', "unknown role"),
    ],
)
def test_the_error_for_an_invalid_case_names_its_line(tmp_path: Path, line: str, message: str) -> None:
    path = cases(tmp_path, 1)
    Path(path).write_text(Path(path).read_text() + f"\n{line}\n")
    with pytest.raises(UserError, match=message):
        list(read_cases(path))


def test_missing_flags_and_unsuitable_bundles_are_errors(tmp_path: Path, old: tuple[Bundle, Bundle]) -> None:
    opened, built = old
    with pytest.raises(UsageError, match="which bundle"):
        convert.main(ConvertTensorrtConfig())
    with pytest.raises(UsageError, match="which cases"):
        convert.convert(opened, configured(tmp_path, cases=""), machine())
    with pytest.raises(UserError, match="is a language model"):
        convert.convert(made(tmp_path / "lm", head="lm", slots=0), configured(tmp_path), machine())
    with pytest.raises(UserError, match="has an engine already"):
        convert.main(ConvertTensorrtConfig(bundle=str(built.folder)))


def test_building_an_engine_imports_only_its_listed_requirements() -> None:
    script = """
import importlib, sys
for name in ("converters.__main__", "converters.tensorrt.convert", "tokenizers"):
    importlib.import_module(name)
print(*{name.partition(".")[0] for name in sys.modules})
"""
    names = {"jaxtyping", "msgspec", "numpy", "onnx", "onnxruntime", "tokenizers", "tqdm"}
    done = subprocess.run([sys.executable, "-c", script], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert names <= loaded
    assert not loaded & {"jax", "flax", "optax", "orbax", "grain", "torch", "transformers", "onnx_ir", "scipy"}
    lines = (paths.ROOT / "requirements-tensorrt.txt").read_text().splitlines()
    listed = {re.split("[<>=]", line)[0] for line in lines if not line.startswith("#")}
    later = {"pyyaml", "fsspec", "tensorrt", "cuda-bindings", "phonenumbers", "python-stdnum"}
    assert listed == names | later, f"{', '.join(sorted(later))} are imported only when they are used"
