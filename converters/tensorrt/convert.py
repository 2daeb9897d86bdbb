"""Convert an ONNX bundle to a TensorRT engine, built and verified on the machine that will serve it. No JAX.

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
from jaxtempl.serve.inference.backends import open_graph
from jaxtempl.serve.inference.tensorrt import Engine, Machine
from jaxtempl.text.case_files import read_cases
from jaxtempl.text.cases import fill_texts
from jaxtempl.text.templates import listed_texts


def main(config: ConvertTensorrtConfig) -> None:
    """Check, build or refit an engine.

    Raises:
        UserError: this machine cannot do it, or the engine does not match the bundle; nothing is written then.
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
    """Write the bundle of an engine, whole or not at all.

    Args:
        opened: an ONNX bundle.
        config: flags of the command.
        machine: machine that builds and serves the engine.

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
    """Raise UserError if a quantized bundle needs a higher compute capability than the one given."""
    needed = opened.manifest.get("compute_capability", "0")
    if _numbers(compute_capability) < _numbers(needed):
        raise UserError(
            f"{opened.folder} is of {opened.manifest['dtype']}, which needs compute capability {needed} or higher, and "
            f"this is for {compute_capability}; convert the run with --quantize=tensorrt-int8 (8.6) or --dtype=fp16"
        )


def _numbers(compute_capability: str) -> list[int]:
    return [int(part) for part in compute_capability.split(".") if part.isdigit()]


def _built(opened: Bundle, config: ConvertTensorrtConfig, machine: Machine, folder: Path) -> dict[str, Any]:
    """Write a new plan, and return the `engine` entry of its manifest."""
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
    """Write an older plan with the bundle's head, and return the `engine` entry of its manifest."""
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
    """Return the contexts to verify the engine on: each given case as one context.

    Raises:
        UserError: the file does not exist, or a record is not a case.
    """
    texts = listed_texts(opened.templates)
    cases = (fill_texts(case, texts) for case in read_cases(config.cases))
    rows = (opened.window.encode(case.messages, case.known_values).ids for case in cases)
    return samples.choose(rows, opened.manifest["buckets"], config.verify_contexts, opened.tokenizer.text_ids)


def verified(opened: Bundle, built: Engine, chosen: VerificationSamples) -> verify.Agreement:
    """Return the agreement of an engine with the bundle.

    Raises:
        UserError: the engine does not match the bundle.
    """
    reference, buckets = open_graph(opened), opened.manifest["buckets"]
    figures = verify.compare(reference, built, chosen.rows, buckets, sys.stderr.isatty())
    dtype = opened.manifest["dtype"]
    faults, small = verify.find_faults(figures, dtype), verify.describe_small_sample(figures, dtype)
    if faults:
        advice = f"; {small}" if small else ""
        raise UserError(f"the engine is not what {opened.folder} is: {'; '.join(faults)}. Nothing was written{advice}")
    return figures
