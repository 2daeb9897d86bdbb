"""The plan of a training matches the compiled program, autodiff, and the published arithmetic."""

import dataclasses
import importlib.util
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from children import environment
from flax import nnx
from jax.experimental import topologies

from bench import common, measured
from bench.measured import Setting
from jaxtempl import cli
from jaxtempl.commands import finetune
from jaxtempl.commands.adapt import main
from jaxtempl.config import parsing, paths, sizes
from jaxtempl.config.training import AdaptConfig, FinetuneConfig
from jaxtempl.errors import UserError
from jaxtempl.models import factory, scan
from jaxtempl.models.scan import Remat
from jaxtempl.parallel import rules
from jaxtempl.parallel.mesh import MeshShape, make_mesh
from jaxtempl.planning import compiled_step, estimate, memory
from jaxtempl.planning.memory import MicrobatchShape
from jaxtempl.specs import flops, published
from jaxtempl.specs.accelerators import ACCELERATORS
from jaxtempl.specs.architecture import Architecture, BertArchitecture, NeoXArchitecture
from jaxtempl.training import adapt, initialization, objectives

BERT = BertArchitecture(layers=3, hidden=64, heads=4, feed_forward=160, vocabulary=1024, positions=256)
SLOTS = 24
SMALL = NeoXArchitecture(layers=3, hidden=64, heads=4, feed_forward=160, vocabulary=1024, positions=256)
ONE = MeshShape(1, 1, 1)


@pytest.fixture(autouse=True)
def _empty_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run without a dataset and without the TPU's compiler, with JAX's default share of memory."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *of: None if name == "libtpu" else find_spec(name, *of)
    )
    monkeypatch.chdir(tmp_path)
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)


def config(*argv: str) -> AdaptConfig:
    return parsing.parse(AdaptConfig, ["--plan", *argv], lambda given: initialization.config_layers("adapt", given))


def lines(*argv: str) -> list[list[str]]:
    """Return the name, value and source of each line of a plan."""
    return [re.split(r" {2,}", line.strip()) for line in estimate.format_plan(config(*argv)).splitlines()]


def named(plan: list[list[str]], name: str) -> list[list[str]]:
    return [line for line in plan if line[0] == name]


def architecture(size: str) -> NeoXArchitecture:
    return NeoXArchitecture(**sizes.read_size(size)["architecture"])


def microbatch(
    shape: MeshShape = ONE, rows: int = 8, length: int = 128, remat: Remat = "none", **changes: Any
) -> MicrobatchShape:
    return MicrobatchShape(shape, rows, length, remat, **{"accumulates": False, "flash": True, **changes})


def test_every_device_name_has_an_accelerator() -> None:
    allowed = next(f.type for f in dataclasses.fields(AdaptConfig) if f.name == "device")
    assert {"none", *ACCELERATORS} == set(allowed.__args__)
    assert all(flops.PEAKS[device.kind] == device.peak for device in ACCELERATORS.values())
    slices = {(name, n): grid for name, device in ACCELERATORS.items() for n, grid in device.slices.items()}
    assert len(slices) == 10
    for (name, n), grid in slices.items():
        chip, _, sides = grid.partition(":")
        assert (chip, math.prod(map(int, sides.split("x")))) == (name, n)


def test_the_plan_of_the_papers_2_8b_training_matches_its_arithmetic() -> None:
    plan = lines("--size=2.8b", "--recipe=paper", "--device=a100-80", "--devices=8", "--mfu=0.5", "--price=3")
    counts, needed = named(plan, "parameters")
    assert counts[1] == "2,775,208,960"
    assert counts[2].startswith("2,517,652,480")
    tokens = 14_500 * 1024 * 2048
    assert named(plan, "tokens")[0][1] == f"{tokens:,}" == "30,408,704,000"
    assert named(plan, "FLOPs")[0][1] == f"{tokens * flops.per_token(architecture('2.8b'), 2048):.4g}"
    assert f"{6 * 2_775_208_960 * tokens:.4g}" in [line[0] for line in plan]
    assert named(plan, "mesh")[0][1] == "1 x 8 x 1"
    assert needed[1] == f"{4 * 2_775_208_960 / 8 / 1e9:.2f} GB"
    assert named(plan, "moments")[0][1] == named(plan, "gradients")[0][1] == f"{8 * 2_775_208_960 / 8 / 1e9:.2f} GB"
    speed = 8 * 312e12 * 0.5 / flops.per_token(architecture("2.8b"), 2048)
    assert named(plan, "speed")[0][1] == f"{speed:,.0f} tokens/s"
    assert named(plan, "time")[0][1] == f"{tokens / speed / 86400:.2f} days"
    assert named(plan, "cost")[0][1] == f"${tokens / speed / 3600 * 8 * 3:,.0f}"


@pytest.mark.parametrize("shape", [ONE, MeshShape(1, 8, 1), MeshShape(2, 2, 2)], ids=str)
def test_the_planned_state_equals_the_size_of_the_shards(shape: MeshShape) -> None:
    shapes = factory.abstract_params(SMALL, SMALL.vocabulary)
    whole = 4 * sum(leaf.size for leaf in jax.tree.leaves(shapes))
    share = whole / (shape.fsdp * shape.tensor)
    for accumulates in (False, True):
        needed = memory.formula_memory(SMALL, microbatch(shape, accumulates=accumulates))
        assert needed[:3] == (share, share * (1 + accumulates), 2 * share)
    total = memory.formula_memory(SMALL, microbatch(shape)).total
    assert total == needed.activations + compiled_step.state_bytes(SMALL, shape)


@pytest.mark.parametrize(("a", "slots"), [(SMALL, SLOTS), (BERT, None), (BERT, SLOTS)])
def test_the_planned_state_equals_that_of_placed_arrays(a: Architecture, slots: int | None) -> None:
    """Some leaves of a BERT and of a classifier are not sharded over every axis."""
    shape, shapes = MeshShape(2, 2, 2), factory.abstract_params(a, slots)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    placed = jax.tree.leaves(jax.device_put(zeros, rules.shardings(make_mesh(shape), shapes)))
    tree = sum(leaf.addressable_shards[0].data.nbytes for leaf in placed)
    assert memory.formula_memory(a, microbatch(shape, slots=slots))[:3] == (tree, tree, 2 * tree)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("a", [SMALL, BERT], ids=lambda a: a.family)
def test_a_layer_saves_what_autodiff_saves(a: Architecture, remat: Remat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with the residuals that JAX passes to the backward pass, by layer, without copies of parameters."""
    monkeypatch.setattr(scan, "UNROLLED", 0)  # residuals of a loop are stacked
    rows, length = 2, 128
    objective = objectives.language_modelling(a, factory.make_graphdef(a, None, jnp.bfloat16, remat))
    row, masked = (jax.ShapeDtypeStruct((rows, n), jnp.int32) for n in (length, 19))
    batch = {"tokens": row, "segments": row}
    batch |= dict.fromkeys(("positions", "targets", "weights"), masked) if a is BERT else {}

    def backward(params: Any, batch: Any) -> Any:
        return jax.vjp(lambda params: objective.loss(params, batch)[0], params)[1]

    saved = jax.tree.leaves(jax.eval_shape(backward, factory.abstract_params(a), batch))
    tokens = {rows, rows * length}  # the axis after the layers: rows, or rows times length
    stacked = [leaf for leaf in saved if leaf.ndim > 1 and leaf.shape[0] == a.layers and leaf.shape[1] in tokens]
    size = sum(math.prod(leaf.shape[1:]) * leaf.dtype.itemsize for leaf in stacked)
    assert memory.layer_activation_bytes(a, microbatch(rows=rows, length=length, flash=False), remat) == size


@pytest.mark.parametrize(("a", "slots"), [(SMALL, SLOTS), (BERT, None), (BERT, SLOTS)])
def test_activations_are_near_those_of_the_compiled_gradient(a: Architecture, slots: int | None) -> None:
    """The CPU's compiler computes bfloat16 in float32, so the sizes differ."""
    known = microbatch(rows=16, length=64, remat="full", flash=False, slots=slots)
    compiled = compiled_step.compile_gradient(a, make_mesh(ONE), 16, 64, "full", slots=slots)
    assert 0.8 < memory.activation_bytes(a, known) / compiled.temporary < 1.25


def test_activations_grow_with_rows_and_layers_and_shrink_with_remat_and_tensor_parallelism() -> None:
    a = architecture("410m")
    base = memory.activation_bytes(a, microbatch(length=2048))
    assert memory.activation_bytes(a, microbatch(length=2048, rows=16)) > 1.7 * base
    assert memory.activation_bytes(dataclasses.replace(a, layers=48), microbatch(length=2048)) > 1.7 * base
    by_remat = [memory.activation_bytes(a, microbatch(length=2048, remat=remat)) for remat in ("none", "dots", "full")]
    assert by_remat == sorted(by_remat, reverse=True)
    assert memory.activation_bytes(a, microbatch(MeshShape(1, 1, 8), length=2048)) < base
    narrow = dataclasses.replace(a, vocabulary=1024)  # a layer needs more than the loss
    flash, xla = (memory.activation_bytes(narrow, microbatch(length=2048, flash=flash)) for flash in (True, False))
    assert flash < xla < 1.2 * flash


def test_the_plan_of_a_bert_counts_masked_tokens() -> None:
    a = published.size_architecture("bert-large")
    plan = lines("--size=bert-large", "--device=a100-80", "--devices=8", "--mfu=0.5", "--steps=100", "--batch_size=512")
    assert named(plan, "parameters")[0][1] == f"{flops.parameter_count(a):,}"
    assert named(plan, "tokens")[0][1] == f"{100 * 512 * 512:,}"
    operations = 100 * 512 * flops.per_masked_row(a, 512, 77)  # 15 % of 512
    assert named(plan, "FLOPs")[0][1] == f"{operations:.4g}"
    assert named(plan, "microbatches")[0][2].endswith("XLA attention")
    assert named(plan, "time")[0][1] == f"{operations / (8 * 312e12 * 0.5) / 86400:.2f} days"
    assert named(plan, "FITS")


@pytest.mark.parametrize("size", ["bert-tiny", "nano"])
def test_the_plan_of_a_classifier_counts_its_labels(size: str, tmp_path: Path) -> None:
    data = tiny.dataset(tmp_path / "made")
    given = [f"--size={size}", f"--data={data.folder}", "--device=a10", "--batch_size=8", "--mfu=0.5", "--length=256"]
    asked = parsing.parse(FinetuneConfig, ["--plan", *given], lambda g: initialization.config_layers("finetune", g))
    plan = [re.split(r" {2,}", line.strip()) for line in estimate.format_plan(asked).splitlines()]
    a, labels, slots = published.size_architecture(size), len(data.labels("train").case), len(data.templates)
    rows = 8 * math.ceil(asked.epochs * labels / 8)
    assert named(plan, "tokens")[0][1] == f"{rows * 256:,}"
    assert f"at most, if all of {labels} contexts" in named(plan, "tokens")[0][2]
    assert named(plan, "FLOPs")[0][1] == f"{rows * flops.per_context(a, 256, slots):.4g}"
    classifier = sum(leaf.size for leaf in jax.tree.leaves(factory.abstract_params(a, slots)))
    assert named(plan, "parameters")[1][1] == f"{4 * classifier / 1e9:,.2f} GB"
    assert named(plan, "FITS")


def test_the_plan_suggests_flags_that_fit() -> None:
    plan = lines("--size=2.8b", "--device=a100-40", "--devices=8")
    assert named(plan, "DOES NOT FIT")
    flags = [line[1] for line in named(plan, "would fit")]
    assert len(flags) == 2
    assert flags[0].startswith("--gradient_accumulation_steps=")
    for instead in flags:
        assert named(lines("--size=2.8b", "--device=a100-40", "--devices=8", *instead.split()), "FITS")
    half = f"--gradient_accumulation_steps={int(flags[0].split('=')[1]) // 2}"
    assert named(lines("--size=2.8b", "--device=a100-40", "--devices=8", half), "DOES NOT FIT")
    assert named(lines("--size=12b", "--device=h100"), "would fit")[0][1] == "--devices=8 --remat=full"


def test_the_plan_reports_that_no_similar_settings_fit() -> None:
    plan = lines("--size=12b", "--device=a10", "--mesh.fsdp=1")
    assert [line[0] for line in plan if "near" in line[0]] == ["nothing near fits"]


def test_usable_memory_is_a_fraction_of_a_gpu_and_all_of_a_tpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert estimate.usable_memory(ACCELERATORS["h100"])[0] == 60e9
    assert estimate.usable_memory(ACCELERATORS["v5p"])[0] == 95e9
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.9")
    assert estimate.usable_memory(ACCELERATORS["h100"])[0] == 72e9


def test_attention_is_flash_if_the_device_supports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(*argv: str) -> str:
        return named(lines(*argv), "microbatches")[0][2].rpartition("; ")[2]

    assert attention("--size=1b", "--device=h100") == "flash attention"
    assert attention("--size=1b", "--device=a100-80") == "XLA attention"  # head dimension 256
    assert attention("--size=14m", "--device=v5e") == "XLA attention"  # head dimension 32
    assert attention("--size=1b", "--device=v5p", "--precision=fp16") == "XLA attention"
    assert attention("--size=410m", "--device=h100", "--mask_documents") == "XLA attention"
    assert attention("--size=410m", "--device=v5e", "--mask_documents") == "flash attention"
    for length, kind in ((1024, "flash"), (1000, "XLA")):
        monkeypatch.setattr(adapt, "PAPER_LENGTH", length)
        assert {attention("--size=410m", f"--device={name}") for name in ACCELERATORS} == {f"{kind} attention"}


@pytest.fixture
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run the GPU benchmark with given measurements; its results file is the one that plans read."""
    for module in (common, measured):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "train_gpu.json" if module is measured else tmp_path)
    monkeypatch.setattr(memory, "BENCHMARK", measured.RESULTS)

    def run(setting: Setting, **measured_values: Any) -> None:
        defaults = {
            "device": "NVIDIA H200",
            "attention": "cudnn",
            "seconds": [1.0],
            "first_seconds": [9.0],
            "losses": [2.0],
        }
        monkeypatch.setattr(common, "run_child", lambda *_, **__: {**defaults, **measured_values})
        assert measured.Results().measure(setting, measured.Clock(60))

    return run


def test_a_measured_peak_corrects_the_formula_and_gives_the_mfu(benchmark: Callable[..., None]) -> None:
    a, known = architecture("410m"), microbatch(rows=4, length=measured.LENGTH, remat="none")
    plain = memory.formula_memory(a, known._replace(accumulates=True))
    ours = Setting("jaxtempl", "410m", 4, "none")
    for other in (
        ours._replace(side="torch"),
        ours._replace(flags="--xla_x"),
        ours._replace(remat="attention"),
        ours._replace(size="1b"),
    ):
        benchmark(other, peak_bytes=1)
    needed = memory.estimate_memory(a, known, ACCELERATORS["h200"])
    assert (needed.activations, needed.source.split(":")[0]) == (plain.activations, "formula, not corrected")
    assert "40% of 989" in named(lines("--size=410m", "--device=h200"), "speed")[0][2]
    half = measured.UPDATE * measured.LENGTH * flops.per_token(a, measured.LENGTH) / (989e12 / 2)
    benchmark(ours, peak_bytes=plain.total + plain.activations / 2, seconds=[half])
    needed = memory.estimate_memory(a, known, ACCELERATORS["h200"])
    assert needed.activations == pytest.approx(1.5 * plain.activations)
    assert "times 1.50, as measured at 4 rows" in needed.source
    assert "50% of 989" in named(lines("--size=410m", "--device=h200"), "speed")[0][2]
    for device, remat in (("h100", "none"), ("h200", "full")):
        other = memory.estimate_memory(a, known._replace(remat=remat), ACCELERATORS[device])
        assert other.source.startswith("formula, not corrected")


def test_the_plan_for_a_tpu_uses_the_tpu_compiler_if_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's compiler stands in behind the same call. Its sizes differ, because it computes bfloat16 in float32."""
    small, device = microbatch(MeshShape(1, 8, 1), rows=16, length=64, remat="full", flash=False), ACCELERATORS["v5e"]
    assert memory.compiler_memory(SMALL, small, device).source == "formula, because libtpu is not installed"
    slices = []

    def described(slice_: str, platform: str) -> Any:
        slices.append((slice_, platform))
        return type("Topology", (), {"devices": jax.devices()})

    monkeypatch.setattr(topologies, "get_topology_desc", described)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "libtpu")
    for name in ("TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "1")  # monkeypatch restores the variables that the call sets
    programs = list[Any]()
    compile_ = compiled_step.compile_gradient
    monkeypatch.setattr(
        compiled_step, "compile_gradient", lambda *given: programs.append(compile_(*given)) or programs[-1]
    )
    needed = memory.compiler_memory(SMALL, small, device)
    assert [needed.activations] == [program.temporary for program in programs]
    assert 0.5 < needed.activations / memory.activation_bytes(SMALL, small) < 2
    assert (needed.source, slices) == ("the TPU's compiler", [("v5e:2x4", "tpu")])
    assert os.environ["TPU_ACCELERATOR_TYPE"] == "v5litepod-8"
    too_much = (
        "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (21.56G) exceeds available HBM (15.75G)."
    )
    for message, bytes_ in ((too_much, 21.56 * 2**30), ("INTERNAL: it broke", None)):
        error = jax.errors.JaxRuntimeError(message)
        monkeypatch.setattr(memory, "compiled_activations", lambda *_, error=error: (_ for _ in ()).throw(error))
        if bytes_:
            assert memory.compiler_memory(SMALL, small, device).activations == bytes_
        else:
            with pytest.raises(UserError, match="it broke"):
                memory.compiler_memory(SMALL, small, device)
    assert "no slice of 3 chips" in memory.compiler_memory(SMALL, microbatch(MeshShape(3, 1, 1), rows=3), device).source


def test_the_tpu_compiler_compiles_the_configured_training(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[Any]()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "libtpu")
    monkeypatch.setattr(compiled_step, "describe_slice", lambda slice_: jax.devices())
    monkeypatch.setattr(
        objectives, "causal_lm", lambda graphdef, masked=False: seen.append((graphdef, masked)) or 1 / 0
    )
    for flags, expected in (
        (("--mask_documents",), (jnp.bfloat16, True)),
        (("--precision=fp16",), (jnp.float16, False)),
    ):
        with pytest.raises(ZeroDivisionError):
            lines("--size=nano", "--device=v5e", "--devices=8", *flags)
        graphdef, masked = seen.pop()
        model: Any = nnx.merge(graphdef, factory.abstract_params(architecture("nano"), architecture("nano").vocabulary))
        assert (model.dtype, masked) == expected


def test_a_float16_gradient_takes_a_loss_scale() -> None:
    mesh = make_mesh(MeshShape(1, 8, 1))
    program = compiled_step.compile_gradient(SMALL, mesh, 16, 64, dtype=jnp.float16, mask_documents=True)
    assert "f16[" in program.text
    assert program.arguments - compiled_step.compile_gradient(SMALL, mesh, 16, 64).arguments == 4


def test_the_number_of_tokens_comes_from_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny.dataset(tmp_path / "made")
    flags = ("--size=nano", f"--data={data.folder}", "--device=a10", "--batch_size=4")
    rows = int(named(lines(*flags), "tokens")[0][2].split("; ")[1].split()[0])
    steps = math.ceil(rows / 4)
    assert named(lines(*flags), "tokens")[0][1] == f"{steps * 4 * 32:,}"
    assert named(lines(*flags, "--epochs=2"), "tokens")[0][1] == f"{math.ceil(rows / 2) * 4 * 32:,}"
    assert named(lines(*flags, "--steps=3"), "tokens")[0][1] == f"{3 * 4 * 32:,}"
    positions = architecture("nano").positions
    monkeypatch.setattr(adapt, "PAPER_LENGTH", 2 * positions)
    assert named(lines(*[f for f in flags if f[:6] != "--data"], "--steps=3"), "tokens")[0][1] == f"{12 * positions:,}"
    with pytest.raises(UserError, match="is not a dataset"):
        lines("--size=nano", "--data=nowhere", "--device=a10")
    (tmp_path / "data").symlink_to(data.folder)  # the default dataset, prepared for another model
    assert "no dataset of this model" in named(lines("--size=410m", "--device=a10"), "tokens")[0][2]


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--plan", "--size=410m"], 2, "pass --device=a10|a100-40|"),
        (["--plan", "--size=410m", "--device=b200"], 2, "allowed: none, a10, a100-40"),
        (["--plan", "--size=410m", "--device=h100", "--devices=0"], 2, "1 or more"),
        (["--plan", "--size=410m", "--device=h100", "--precision=fp32"], 2, "use bf16 or fp16"),
        (
            ["--plan", "--size=410m", "--device=h100", "--gradient_accumulation_steps=3"],
            1,
            "does not divide --batch_size=1024",
        ),
        (["--plan", "--size=410m", "--device=h100", "--mesh.fsdp=2"], 1, "the nearest that fits"),
        (["--plan", "--size=410m", "--device=h100", "--mfu=40"], 2, "from 0 to 1"),
        (["--size=410m", "--device=h100"], 2, "need --plan; a training uses"),
        (["--size=410m", "--devices=2"], 2, "need --plan; a training uses"),
        (["--size=410m", "--mfu=0.5"], 2, "need --plan; a training uses"),
        (["--size=410m", "--price=2"], 2, "need --plan; a training uses"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_an_invalid_flag_is_a_one_line_error(
    argv: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(main, argv) == code
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert message in stderr


def test_a_training_of_a_classifier_refuses_flags_of_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(finetune.main, ["--size=nano", "--device=h100"]) == 2
    assert "need --plan; a training uses" in capsys.readouterr().err


def test_the_command_prints_a_plan_and_writes_no_files(tmp_path: Path) -> None:
    """The command runs in an empty folder, so any file that it writes would be found."""
    (tmp_path / "empty").mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {**environment(), "PATH": path, "HOME": str(tmp_path / "empty")}
    command = [paths.ROOT / "bin" / "adapt", "--plan", "--size=6.9b", "--device=h200", "--devices=8"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "empty", env=variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("model")
    assert "FITS" in done.stdout
    assert list((tmp_path / "empty").iterdir()) == []
