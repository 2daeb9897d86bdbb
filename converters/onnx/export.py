"""A run -> a bundle: its ONNX graph, held to the run on real contexts, with all that serving it needs."""

import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnx_ir as ir
from jaxtyping import PyTree

from converters.onnx import graph
from converters.onnx.attention import AttentionForm
from converters.onnx.layers import GraphOptions
from converters.quantize import quantize
from converters.verify import dataset_samples, exportable, localize, samples, verify
from converters.verify.flax_network import FlaxNetwork
from converters.verify.samples import Chosen
from jaxtempl import files
from jaxtempl.bundle import bundle
from jaxtempl.config.converting import ConvertOnnxConfig, Dtype
from jaxtempl.data.dataset import Dataset
from jaxtempl.errors import UsageError, UserError
from jaxtempl.huggingface.mapping import Head
from jaxtempl.runs import run
from jaxtempl.runs.run import Run
from jaxtempl.serve.inference.backends import OnnxRuntime
from jaxtempl.specs.architecture import NeoXArchitecture
from jaxtempl.text import window as text_window
from jaxtempl.text.cases import Template
from jaxtempl.text.window import WINDOW

INLINE_BYTES = 2 * 10**9  # of weights; protobuf ends at 2 GiB, so larger models keep them beside the graph
DATA = "model.onnx.data"


class ExportedNetwork(NamedTuple):
    """A network in a bundle's folder: how it compared, on what, and what quantising it came to."""

    figures: verify.Figures
    chosen: Chosen
    outcome: quantize.QuantizeResult | None


def main(config: ConvertOnnxConfig) -> None:
    """Converts the run that `config` names.

    Raises:
        UserError: there is no such run or dataset, or the bundle is not what the run is; nothing is left then.
    """
    if not config.run:
        raise UsageError("which run? pass --run=RUN, RUN@STEP, RUN@last or RUN@best")
    files.check_target(config.out, config.overwrite, bundle.MANIFEST, "bundle")
    found, step = run.resolve(config.run)
    exportable.check(found)
    with files.atomic_folder(config.out, config.overwrite) as folder:
        written = _write_network(folder, found, step, config)
        write_tokenizer_and_templates(folder, found)
        known = manifest_facts(found, step, config) | (written.outcome.facts if written.outcome else {})
        bundle.write_manifest(folder, known | {"verify": verification(written.figures, written.chosen)})
    print(f"{config.out}: {verify.said(written.figures)}")
    if written.outcome:
        print(quantize.write_report(config.out, written.outcome, f"{known['run']['name']}@{step}"))


def _write_network(folder: Path, found: Run, step: int, config: ConvertOnnxConfig) -> ExportedNetwork:
    """Writes model.onnx once the dataset has what it is to be held to; raises UserError where it is not the run."""
    dtype, dataset = quantize.float_type(config), Dataset(_data(found, config))
    options = graph_options(found, config, dtype)
    chosen = verification_samples(found, options.head, dataset, config.verify_contexts)
    given = quantize.collect_samples(found, dataset, window_limit(found), config)
    params = found.params(step)
    build = functools.partial(_graph, params, found, config)
    reference = FlaxNetwork(params, found.architecture, options.head)
    save(build(dtype), folder)
    figures = verify_against_run(folder / bundle.ONNX, reference, chosen, found, dtype)
    if not given:
        return ExportedNetwork(figures, chosen, None)
    outcome = quantize.quantize_bundle(folder, build, save, given, config)
    # These figures are told, but it is the gate that has decided.
    return ExportedNetwork(compare_with_run(folder / bundle.ONNX, reference, chosen, found), chosen, outcome)


def _graph(params: PyTree, found: Run, config: ConvertOnnxConfig, dtype: Dtype) -> ir.Model:
    return graph.build(params, found.architecture, graph_options(found, config, dtype))


def graph_options(found: Run, config: ConvertOnnxConfig, dtype: Dtype) -> GraphOptions:
    """How the run's graph of that type is written; raises UserError where the run has no such head or slots."""
    if config.head not in ("auto", found.head):
        raise UserError(f"--head={config.head}, but {found.folder} is of {found.phase}, whose head is {found.head}")
    return GraphOptions(
        found.head, dtype, config.wide_residual, attention_form(found, config, dtype), _slots(found, config)
    )


def attention_form(found: Run, config: ConvertOnnxConfig, dtype: Dtype) -> AttentionForm:
    """The form asked for, or the one that is best where such a bundle goes: fp32 to CPUs, fp16 to TensorRT."""
    if config.form != "auto":
        return config.form
    return "chunked" if dtype == "fp32" and isinstance(found.architecture, NeoXArchitecture) else "fused"


def _slots(found: Run, config: ConvertOnnxConfig) -> int:
    if config.slots and found.phase != "finetune":
        raise UserError(f"--slots={config.slots} is of a template head; {found.folder} is a language model")
    if config.slots and config.slots < found.outputs:
        raise UserError(f"--slots={config.slots} is less than the run's {found.outputs} templates; leave room for all")
    return config.slots


def window_limit(found: Run) -> int:
    """Tokens that a context of the run has at most; a language model's are cut as a classifier's are."""
    return min(found.manifest.get("length", WINDOW), found.architecture.positions)


def verification_samples(found: Run, head: Head, dataset: Dataset, wanted: int) -> Chosen:
    """What the bundle is verified on.

    Raises:
        UserError: the dataset has no contexts.
    """
    window = window_limit(found)
    rows: Iterator[list[int]] = (
        dataset_samples.labelled(dataset, found.tokenizer, window, found.manifest["role_tags"])
        if head == "template"
        else dataset_samples.documents(dataset, found.tokenizer, window)
    )
    return samples.choose(rows, text_window.buckets(window), wanted)


def _data(found: Run, config: ConvertOnnxConfig) -> Path:
    """The dataset that is named, or the first that the run was trained on and that is still there."""
    if config.data:
        return Path(config.data)
    trained = [Path(name) for name in found.manifest["datasets"]]
    there = next((path for path in trained if path.is_dir()), None)
    if there is None:
        raise UserError(
            f"the dataset of {found.folder} ({', '.join(map(str, trained))}) is not here, and a bundle is verified on "
            "real contexts; pass --data=DIR"
        )
    return there


def save(model: ir.Model, folder: Path) -> None:
    """Writes model.onnx, and model.onnx.data where the weights are above 2 GB, one tensor in memory at a time."""
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    ir.save(model, folder / bundle.ONNX, external_data=DATA if size > INLINE_BYTES else None)


def verify_against_run(model: Path, reference: FlaxNetwork, chosen: Chosen, found: Run, dtype: str) -> verify.Figures:
    """The figures of a graph that is what the run is.

    Raises:
        UserError: it is not; the line says how far and from which layer on.
    """
    figures = compare_with_run(model, reference, chosen, found)
    faults = verify.faults(figures, dtype)
    if faults:
        row = max(chosen.rows, key=len)
        ids, _ = verify.padded([row], len(row))
        where = localize.first_layer(model, row, reference.residuals(ids), dtype, reference.place)
        raise UserError(
            f"the bundle is not what {found.folder} is: {'; '.join(faults)}. Activations part at {where}. Nothing was "
            "written; fp16 may need --wide_residual=true or --dtype=fp32"
        )
    return figures


def compare_with_run(model: Path, reference: FlaxNetwork, chosen: Chosen, found: Run) -> verify.Figures:
    """How far a graph is from the run."""
    buckets = text_window.buckets(window_limit(found))
    return verify.compare(reference, OnnxRuntime(model), chosen.rows, buckets, sys.stderr.isatty())


def write_tokenizer_and_templates(folder: Path, found: Run) -> None:
    """tokenizer.json and templates.json."""
    (folder / "tokenizer.json").write_text(found.tokenizer.json, encoding="utf-8")
    templates: Sequence[Template] = found.templates
    files.write_json(folder / "templates.json", [dataclasses.asdict(template) for template in templates])


def manifest_facts(found: Run, step: int, config: ConvertOnnxConfig) -> dict[str, Any]:
    """What `bundle.json` says of the model; of the run its name and sums, nothing of its contexts."""
    window, options = window_limit(found), graph_options(found, config, quantize.float_type(config))
    return {
        "model": bundle.ONNX,
        "head": options.head,
        "dtype": options.dtype,
        "wide_residual": options.wide_residual,
        "form": options.form,
        "window": window,
        "role_tags": found.manifest.get("role_tags", True),
        "special_tokens": found.tokenizer.overhead,
        "temperature": found.temperature(step),
        "slots": max(options.slots, found.outputs),
        "buckets": list(text_window.buckets(window)),
        "run": {
            "name": found.folder.resolve().name,
            "step": step,
            "size": found.manifest["size"],
            "manifest_sha256": files.sha256(found.folder / "manifest.json"),
            "datasets": sorted(found.manifest["datasets"].values()),
        },
    }


def verification(figures: verify.Figures, chosen: Chosen) -> Mapping[str, Any]:
    """The verify figures with the contexts they are of: how many of each length are real and how many made."""
    return {"against": "flax", **samples.told(chosen), **verify.as_json(figures)}
