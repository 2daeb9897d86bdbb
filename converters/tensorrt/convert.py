"""An ONNX bundle -> a bundle with a TensorRT engine, on the machine that will serve it, verified there. No JAX.

TensorRT and CUDA need a GPU to run a plan. Building has been run with tensorrt_rtx, which needs none; what runs or
refits a plan only against stand-ins (tests/fake_gpu.py).
"""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.tensorrt import check, engine, refit
from converters.tensorrt.engine import BuildConfig
from converters.verify import samples, verify
from converters.verify.samples import VerificationSamples
from jaxtempl import files
from jaxtempl.bundle import bundle
from jaxtempl.bundle.bundle import ONNX, PLAN, Bundle
from jaxtempl.config.converting import ConvertTensorrtConfig
from jaxtempl.errors import UsageError, UserError
from jaxtempl.serve.inference import tensorrt
from jaxtempl.serve.inference.backends import OnnxRuntime
from jaxtempl.serve.inference.tensorrt import Engine, Machine
from jaxtempl.text.case_files import read_cases


def main(config: ConvertTensorrtConfig) -> None:
    """Checks, builds or refits.

    Raises:
        UserError: it cannot be done here, or the engine is not what the bundle is; nothing is left then.
    """
    if not config.bundle:
        raise UsageError("which bundle? pass --bundle=DIR of one that bin/convert onnx --dtype=fp16 made")
    opened = Bundle.open(Path(config.bundle))
    if opened.manifest["model"] != ONNX:
        raise UserError(f"{opened.folder} has an engine already; name the bundle that it was built from")
    if config.check:
        refuse_older(opened, config.compute_capability)
        wanted = BuildConfig(
            opened.manifest["buckets"], config.max_batch_size, compute_capability=config.compute_capability
        )
        print(check.format_report(check.check(check.import_tensorrt_rtx(), opened.model, wanted)))
    else:
        convert(opened, config, Machine.here())


def convert(opened: Bundle, config: ConvertTensorrtConfig, machine: Machine) -> None:
    """Writes the bundle of an engine, whole or not at all.

    Args:
        opened: an ONNX bundle.
        config: the command's.
        machine: to build on and for.

    Raises:
        UserError: see `main`.
    """
    if opened.manifest["head"] != "template":
        raise UserError(f"{opened.folder} is a language model; an engine is built of a template classifier")
    if not config.cases:
        raise UsageError(
            'which cases is the engine to be verified on? pass --cases=FILE.jsonl, {"messages": [...]} a line'
        )
    refuse_older(opened, machine.compute_capability)
    chosen = contexts(opened, config)
    with files.atomic_folder(config.out) as folder:
        facts = _refitted(opened, config, machine, folder) if config.refit else _built(opened, config, machine, folder)
        with Engine(machine, (folder / PLAN).read_bytes(), facts["profiles"]) as built:
            figures = verified(opened, built, chosen)
        for name in ("tokenizer.json", "templates.json"):
            shutil.copyfile(opened.folder / name, folder / name)
        known = {
            key: value for key, value in opened.manifest.items() if key not in ("format", "kind", "version", "files")
        }
        verification = {"against": ONNX, **samples.to_dict(chosen), **verify.to_dict(figures)}
        bundle.write_manifest(folder, {**known, "model": PLAN, "engine": facts, "verify": verification})
    print(f"{config.out}: {verify.summary(figures)}")


def refuse_older(opened: Bundle, compute_capability: str) -> None:
    """Raises UserError where a quantised bundle needs a GPU of a higher compute capability than the one named."""
    needed = opened.manifest.get("compute_capability", "0")
    if _numbers(compute_capability) < _numbers(needed):
        raise UserError(
            f"{opened.folder} is of {opened.manifest['dtype']}, which needs compute capability {needed} or higher, and "
            f"this is for {compute_capability}; convert the run with --quantize=tensorrt-int8 (8.6) or --dtype=fp16"
        )


def _numbers(compute_capability: str) -> list[int]:
    return [int(part) for part in compute_capability.split(".") if part.isdigit()]


def _built(opened: Bundle, config: ConvertTensorrtConfig, machine: Machine, folder: Path) -> dict[str, Any]:
    """Writes a new plan; the `engine` of its manifest."""
    timing = Path(config.timing_cache) if config.timing_cache else None
    refittable = refit.refittable_weights(opened.model)
    wanted = BuildConfig(opened.manifest["buckets"], config.max_batch_size, refittable, timing)
    built = engine.build(machine.trt, opened.model, wanted)
    (folder / PLAN).write_bytes(built.plan)
    return {
        **machine.facts(),
        "bundle": opened.manifest["version"],
        "profiles": wanted.profiles(),
        "build_seconds": round(built.build_seconds, 1),
        "refittable": refittable,
        **refit.graph_digests(opened.model)._asdict(),
    }


def _refitted(opened: Bundle, config: ConvertTensorrtConfig, machine: Machine, folder: Path) -> dict[str, Any]:
    """Writes an older plan with the bundle's head; the `engine` of its manifest."""
    old = Bundle.open(Path(config.refit))
    tensorrt.check_engine(old, machine)
    refit.check(old, opened)
    plan = refit.refit(machine, old.model.read_bytes(), refit.head_weights(opened.model))
    (folder / PLAN).write_bytes(plan)
    known: Mapping[str, Any] = old.manifest["engine"]
    refittable = known["refittable"] if refit.stays_refittable(machine.trt) else []
    return {
        **known,
        "bundle": opened.manifest["version"],
        "refitted": old.manifest["version"],
        "refittable": refittable,
    }


def contexts(opened: Bundle, config: ConvertTensorrtConfig) -> VerificationSamples:
    """What the engine is verified on: the windows of the given cases, each read to its end.

    Raises:
        UserError: the file is not there or is not one of cases.
    """
    rows = (opened.window.encode(case.messages).ids for case in read_cases(config.cases))
    return samples.choose(rows, opened.manifest["buckets"], config.verify_contexts)


def verified(opened: Bundle, built: Engine, chosen: VerificationSamples) -> verify.Agreement:
    """The figures of an engine that is what the bundle is.

    Raises:
        UserError: it is not.
    """
    reference, buckets = OnnxRuntime(opened.model), opened.manifest["buckets"]
    figures = verify.compare(reference, built, chosen.rows, buckets, sys.stderr.isatty())
    faults = verify.find_faults(figures, opened.manifest["dtype"])
    if faults:
        raise UserError(f"the engine is not what {opened.folder} is: {'; '.join(faults)}. Nothing was written")
    return figures
