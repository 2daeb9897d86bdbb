"""`convert triton`: Triton's protobuf parses the config, and ONNX Runtime runs the warm-up requests it declares."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import imports
import numpy as np
import onnxruntime
import pytest
from tiny import template
from triton_models import BUCKETS, PB2, TEMPLATES, WIDTH, convert, engine, make_bundle, save_network

from converters.triton.convert import main
from jaxtempl.bundle import bundle
from jaxtempl.config.converting import ConvertTritonConfig
from jaxtempl.config.paths import ROOT
from jaxtempl.errors import UsageError, UserError


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("network"))


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files that Triton sees: all except hidden ones."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {str(p): (folder / p).read_bytes() for p in paths if not any(part.startswith(".") for part in p.parts)}


def input_of(warmup: Any, name: str, model: Path) -> np.ndarray:
    """Return one input of a warm-up request as Triton builds it: zeros or a file's bytes, repeated to the batch."""
    declared = warmup.inputs[name]
    assert declared.data_type == PB2.TYPE_INT32
    shape = tuple(declared.dims)
    if declared.WhichOneof("input_data_type") == "zero_data":
        row = np.zeros(shape, np.int32)
    else:
        raw = (model / "warmup" / declared.input_data_file).read_bytes()
        assert len(raw) == WIDTH[declared.data_type] * np.prod(shape)
        row = np.frombuffer(raw, "<i4").reshape(shape)
    return np.stack([row] * warmup.batch_size)


# Written files


def test_an_onnx_model_runs_each_warmup_request(network: Path, tmp_path: Path) -> None:
    config = convert(make_bundle(tmp_path / "bundle", network), tmp_path / "models")
    model = tmp_path / "models" / "templates"
    session = onnxruntime.InferenceSession(model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    declared = {i.name: (i.data_type, [-1, *i.dims]) for i in config.input}
    actual = {i.name: (i.type, [d if isinstance(d, int) else -1 for d in i.shape]) for i in session.get_inputs()}
    assert {
        name: (PB2.TYPE_INT32, shape) for name, (kind, shape) in actual.items() if kind == "tensor(int32)"
    } == declared
    assert [list(config.output[0].dims)] == [output.shape[1:] for output in session.get_outputs()]
    assert config.output[0].data_type == PB2.TYPE_FP32
    lengths = []
    for warmup in config.model_warmup:
        fed = {name: input_of(warmup, name, model) for name in declared}
        (logits,) = session.run([config.output[0].name], fed)
        assert (logits.dtype, logits.shape) == (np.float32, (warmup.batch_size, *config.output[0].dims))
        assert fed["lengths"].item() == fed["input_ids"].shape[1]
        lengths.append(fed["lengths"].item())
    assert lengths == BUCKETS


def test_a_version_is_the_whole_bundle(network: Path, tmp_path: Path) -> None:
    given = make_bundle(tmp_path / "bundle", network)
    convert(given, tmp_path / "models")
    version = tmp_path / "models" / "templates" / "1"
    assert contents(version) == contents(given)
    assert {"model.onnx", "model.onnx.data"} <= set(contents(version))
    assert bundle.Bundle.open(version).tokenizer.encode(["hi"])


def test_the_queue_timeout_is_the_configured_budget(network: Path, tmp_path: Path) -> None:
    config = convert(make_bundle(tmp_path / "bundle", network), tmp_path / "models", max_batch_size=3, timeout_ms=50)
    batching, policy = config.dynamic_batching, config.dynamic_batching.default_queue_policy
    assert (config.name, config.max_batch_size) == ("templates", 3)
    assert list(batching.preferred_batch_size) == [2, 3]
    assert 0 < batching.max_queue_delay_microseconds < policy.default_timeout_microseconds == 50_000
    assert policy.timeout_action == PB2.ModelQueuePolicy.REJECT
    assert policy.allow_timeout_override
    assert policy.max_queue_size > config.max_batch_size
    assert config.version_policy.latest.num_versions == 1


def test_a_maximum_batch_of_one_sets_no_preferred_size(network: Path, tmp_path: Path) -> None:
    config = convert(make_bundle(tmp_path / "bundle", network), tmp_path / "models", max_batch_size=1)
    assert not config.dynamic_batching.preferred_batch_size
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"


def test_the_instance_group_matches_the_device(network: Path, tmp_path: Path) -> None:
    onnx, plan, out = make_bundle(tmp_path / "onnx", network), make_bundle(tmp_path / "plan", None), tmp_path / "models"
    gpu, cpu, engine = convert(onnx, out), convert(onnx, out, name="cpu", device="cpu"), convert(plan, out, name="trt")
    kinds = PB2.ModelInstanceGroup
    assert [c.platform for c in (gpu, cpu, engine)] == ["onnxruntime_onnx", "onnxruntime_onnx", "tensorrt_plan"]
    groups = [config.instance_group[0] for config in (gpu, cpu, engine)]
    assert [group.kind for group in groups] == [kinds.KIND_GPU, kinds.KIND_CPU, kinds.KIND_GPU]
    assert [group.count for group in groups] == [1, 1, 1]
    assert [list(group.profile) for group in groups] == [[], [], ["0", "1", "2"]]
    accelerator = gpu.optimization.execution_accelerators.gpu_execution_accelerator[0]
    assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", {"use_tf32": "0"})
    assert {key: value.string_value for key, value in cpu.parameters.items()} == {"intra_op_thread_count": "0"}
    assert len(engine.model_warmup) == len(engine.instance_group[0].profile), "one warm-up request per profile"
    assert {path.name for path in out.iterdir()} == {"templates", "cpu", "trt"}
    assert (out / "trt" / "1" / "model.plan").read_bytes() == b"an engine"


def test_labels_have_one_line_per_slot(network: Path, tmp_path: Path) -> None:
    config = convert(make_bundle(tmp_path / "bundle", network), tmp_path / "models")
    lines = (tmp_path / "models" / "templates" / config.output[0].label_filename).read_text().splitlines()
    assert lines == ["greet", "old reply (retired)", "card", "bye", "(padding 4)", "(padding 5)"]
    assert len(lines) == config.output[0].dims[0]


# Versions


def test_a_later_bundle_becomes_the_next_version(network: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "models", tmp_path / "models" / "templates"
    convert(make_bundle(tmp_path / "a", network), out)
    tuned = (model / "config.pbtxt").read_text().replace("max_batch_size: 4", "max_batch_size: 2")
    (model / "config.pbtxt").write_text(tuned)
    before = contents(model)
    later = make_bundle(tmp_path / "b", network, [*TEMPLATES[:3], template(4, "new")])
    assert convert(later, out).max_batch_size == 2, "an edited config is preserved"
    after = contents(model)
    assert {name for name in after if before.get(name) != after[name]} == {
        "labels.txt",
        *(f"2/{name}" for name in contents(later)),
    }
    assert after["labels.txt"].decode().splitlines()[2:] == ["card", "bye", "new", "(padding 5)"]
    shutil.rmtree(model / "1")
    convert(make_bundle(tmp_path / "c", network, TEMPLATES[:3]), out)
    assert {path.name for path in model.iterdir()} >= {"2", "3"}, "version numbers are not reused"


def test_an_engine_with_other_profiles_is_rejected_as_a_version(tmp_path: Path) -> None:
    convert(make_bundle(tmp_path / "a", None), tmp_path / "models")
    with pytest.raises(UserError, match=r"has profiles .* pass another --name"):
        convert(make_bundle(tmp_path / "b", None, engine=engine(4)), tmp_path / "models")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": 7}, "slots 7 and version 1"),
        ({"buckets": [16, 32]}, "buckets [16, 32]"),
        ({"dtype": "fp16"}, "dtype fp16"),
        ({"role_tags": True}, "role_tags True"),
        ({"templates": [template(0, "hello")]}, "slot 0 is 'greet'"),
        ({"run": {"name": "another"}}, "is already version 1"),
        ({"network": None}, "model model.plan"),
    ],
)
def test_a_bundle_that_needs_other_requests_is_rejected_as_a_version(
    changes: dict[str, Any], message: str, network: Path, tmp_path: Path
) -> None:
    convert(make_bundle(tmp_path / "a", network), tmp_path / "models")
    before = contents(tmp_path / "models")
    other = make_bundle(tmp_path / "b", **{"network": network, **changes})
    with pytest.raises(UserError, match=r"nothing was added|pass another --name") as raised:
        convert(other, tmp_path / "models")
    assert message in str(raised.value)
    assert contents(tmp_path / "models") == before


STOP = """
import os, signal, sys
from pathlib import Path
from converters.triton import convert as triton
from jaxtempl.config.converting import ConvertTritonConfig

def stop(*_):
    os.kill(os.getpid(), signal.SIGKILL)

where, given, out = sys.argv[1:]
if where == "copied":
    whole = triton.shutil.copyfile
    triton.shutil.copyfile = lambda source, to: stop() if source.name == "tokenizer.json" else whole(source, to)
elif where == "named":
    triton.files.move_into_place = stop
triton.main(ConvertTritonConfig(bundle=given, out=Path(out)))
"""


def killed(where: str, given: Path, out: Path) -> int:
    return subprocess.run(
        [sys.executable, "-c", STOP, where, given, out], cwd=ROOT, stdout=subprocess.DEVNULL
    ).returncode


@pytest.mark.parametrize("where", ["copied", "named"])
def test_sigkill_leaves_the_repository_unchanged(where: str, network: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    first, second = (
        make_bundle(tmp_path / "a", network),
        make_bundle(tmp_path / "b", network, [*TEMPLATES, template(4, "new")]),
    )
    assert killed(where, first, out) == -signal.SIGKILL
    assert contents(out) == {}
    assert killed("not", first, out) == 0
    before = contents(out)
    assert killed(where, second, out) == -signal.SIGKILL
    after = contents(out)
    if where == "named":  # the labels fit both versions and are written first
        before["templates/labels.txt"] = before["templates/labels.txt"].replace(b"(padding 4)", b"new")
    assert after == before
    assert killed("not", second, out) == 0
    assert (out / "templates" / "2" / "bundle.json").is_file()


# Rejected bundles and flags


@pytest.mark.parametrize(
    ("facts", "flags", "message"),
    [
        ({"head": "lm"}, {}, "is a language model"),
        ({"dtype": "int8"}, {}, "int8 for ONNX Runtime on CPUs; pass --device=cpu"),
        ({"network": None}, {"device": "cpu"}, "is an engine, which needs a GPU"),
        ({"network": None, "engine": engine(2)}, {}, "at most 2 requests at once; pass --max_batch_size=2 or less"),
        ({"network": None, "engine": engine(8, [64])}, {}, "one for each of [16, 32, 64] is needed"),
        ({"network": None, "engine": {}}, {}, "one for each of [16, 32, 64] is needed"),
        ({"buckets": []}, {}, "all must be above 0"),
        ({"buckets": ["64 ] } input [ {"]}, {}, "all must be above 0"),
        ({"slots": 0}, {}, "all must be above 0"),
    ],
)
def test_a_bundle_that_triton_cannot_serve_is_rejected(
    facts: dict[str, Any], flags: dict[str, Any], message: str, network: Path, tmp_path: Path
) -> None:
    given = make_bundle(tmp_path / "bundle", **{"network": network, **facts})
    with pytest.raises(UserError) as raised:
        convert(given, tmp_path / "models", **flags)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "models").exists()


def test_int8_runs_on_the_cpu(network: Path, tmp_path: Path) -> None:
    convert(make_bundle(tmp_path / "bundle", network, dtype="int8"), tmp_path / "models", device="cpu")
    assert "needs a processor with VNNI" in (tmp_path / "models" / "templates" / "config.pbtxt").read_text()


@pytest.mark.parametrize("flags", [{"bundle": ""}, {"name": "../x"}, {"name": ".hidden"}, {"max_batch_size": 65}])
def test_wrong_flags_are_rejected(flags: dict[str, Any], network: Path, tmp_path: Path) -> None:
    given = {"bundle": str(make_bundle(tmp_path / "bundle", network)), "out": tmp_path / "models"}
    with pytest.raises(UsageError):
        main(ConvertTritonConfig(**{**given, **flags}))


def test_a_modified_bundle_is_rejected(network: Path, tmp_path: Path) -> None:
    given = make_bundle(tmp_path / "bundle", network)
    with (given / "model.onnx.data").open("r+b") as file:
        file.write(b"\0\1\2\3")
    with pytest.raises(UserError, match="sha256"):
        convert(given, tmp_path / "models")
    with pytest.raises(UserError, match="is not a bundle"):
        convert(tmp_path / "nowhere", tmp_path / "models")


def test_a_foreign_folder_is_not_changed(network: Path, tmp_path: Path) -> None:
    given = make_bundle(tmp_path / "bundle", network)
    with pytest.raises(UserError, match=r"has bundle.json, which is not a Triton model"):
        convert(given, given)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a folder"):
        convert(given, tmp_path / "file")
    theirs = tmp_path / "models" / "templates"
    (theirs / "1").mkdir(parents=True)
    (theirs / "config.pbtxt").write_text('platform: "onnxruntime_onnx"')
    with pytest.raises(UserError, match="was not written by bin/convert triton"):
        convert(given, tmp_path / "models")
    assert json.loads((given / "bundle.json").read_text())["kind"] == "bundle"
    assert set(contents(theirs)) == {"config.pbtxt"}


def test_conversion_needs_neither_jax_nor_flax() -> None:
    done = imports.without(imports.TRAINING, ["converters.triton.convert"])
    assert done.returncode == 0, done.stderr
