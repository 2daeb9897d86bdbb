"""A run -> a bundle: its ONNX graph, verified against the run on real contexts, and the files that serving needs."""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
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
from converters.verify.samples import VerificationSamples
from jaxtempl import files
from jaxtempl.bundle import bundle
from jaxtempl.config.converting import ConvertOnnxConfig, Dtype
from jaxtempl.data.dataset import Dataset
from jaxtempl.errors import UsageError, UserError
from jaxtempl.huggingface.mapping import Head
from jaxtempl.runs import run
from jaxtempl.runs.run import Run
from jaxtempl.serve.inference import onnx_session
from jaxtempl.serve.inference.backends import OnnxRuntime
from jaxtempl.specs.architecture import NeoXArchitecture
from jaxtempl.text.cases import Template
from jaxtempl.text.window import pad_rows

INLINE_BYTES = 2 * 10**9  # protobuf ends at 2 GiB, so the weights of larger models go into a second file
DATA = "model.onnx.data"


class ExportedNetwork(NamedTuple):
    """A network in a bundle's folder.

    Attributes:
        figures: Comparison with the run.
        chosen: Contexts of the comparison.
        quantized: Result of quantization; None for a float bundle.
    """

    figures: verify.Agreement
    chosen: VerificationSamples
    quantized: quantize.QuantizeResult | None


def main(config: ConvertOnnxConfig) -> None:
    """Convert the run that `config` names.

    Raises:
        UserError: The run or the dataset does not exist, or the bundle does not match the run; nothing is left then.
    """
    if not config.run:
        raise UsageError("no run is named; pass --run=RUN, RUN@STEP, RUN@last or RUN@best")
    files.check_target(config.out, config.overwrite, bundle.MANIFEST, "bundle")
    source, step = run.resolve(config.run)
    exportable.check(source)
    _check_runtime(source, config)
    with files.atomic_folder(config.out, config.overwrite) as folder:
        network = _write_network(folder, source, step, config)
        write_tokenizer_and_templates(folder, source)
        facts = manifest_facts(source, step, config) | (network.quantized.facts if network.quantized else {})
        bundle.write_manifest(folder, facts | {"verify": verification(network.figures, network.chosen)})
    print(f"{config.out}: {verify.summary(network.figures)}")
    if network.quantized:
        print(quantize.write_report(config.out, network.quantized, f"{facts['run']['name']}@{step}"))


def _write_network(folder: Path, source: Run, step: int, config: ConvertOnnxConfig) -> ExportedNetwork:
    """Write model.onnx after reading the contexts; raises UserError if it does not match the run."""
    dtype = quantize.float_type(config)
    dataset = Dataset(source.dataset_folder(config.data, "a bundle is verified on real contexts"))
    head = graph_options(source, config, dtype).head
    chosen = verification_samples(source, head, dataset, config.verify_contexts)
    gate_samples = quantize.collect_samples(source, dataset, config)
    params = source.params(step)
    build = functools.partial(_graph, params, source, config)
    reference = FlaxNetwork(params, source.architecture, head)
    save(build(dtype), folder)
    figures = verify_against_run(folder / bundle.ONNX, reference, chosen, source, dtype)
    if not gate_samples:
        return ExportedNetwork(figures, chosen, None)
    quantized = quantize.quantize_bundle(folder, build, save, gate_samples, config)
    # The figures of the quantized network are reported; the gate has accepted it.
    return ExportedNetwork(compare_with_run(folder / bundle.ONNX, reference, chosen, source), chosen, quantized)


def _graph(params: PyTree, source: Run, config: ConvertOnnxConfig, dtype: Dtype) -> ir.Model:
    return graph.build(params, source.architecture, graph_options(source, config, dtype))


def graph_options(source: Run, config: ConvertOnnxConfig, dtype: Dtype) -> GraphOptions:
    """Return the options of the run's graph in one type; raises UserError for another head or too few slots."""
    if config.head not in ("auto", source.head):
        raise UserError(
            f"--head={config.head} does not match {source.folder}, an {source.phase} run with the head {source.head}; "
            f"pass --head={source.head} or leave it out"
        )
    form = attention_form(source, config, dtype)
    return GraphOptions(source.head, dtype, config.wide_residual, form, _slots(source, config))


def attention_form(source: Run, config: ConvertOnnxConfig, dtype: Dtype) -> AttentionForm:
    """Return the requested form; for `auto` the best one for the usual target: CPUs for fp32, TensorRT for fp16."""
    if config.form != "auto":
        return config.form
    return "chunked" if dtype == "fp32" and isinstance(source.architecture, NeoXArchitecture) else "fused"


def _check_runtime(source: Run, config: ConvertOnnxConfig) -> None:
    """Raise UserError if ONNX Runtime is too old to verify the graph; quantization compares all float types."""
    dtypes = quantize.FLOATS if config.quantize != "none" else (config.dtype,)
    for dtype in dtypes:
        onnx_session.check_version(dtype, attention_form(source, config, dtype))


def _slots(source: Run, config: ConvertOnnxConfig) -> int:
    if config.slots and source.phase != "finetune":
        raise UserError(
            f"--slots={config.slots} needs a template head, and {source.folder} is a language model; leave --slots out"
        )
    if config.slots and config.slots < source.outputs:
        raise UserError(
            f"--slots={config.slots} is less than the run's {source.outputs} templates; pass --slots={source.outputs} "
            "or more"
        )
    return config.slots


def verification_samples(source: Run, head: Head, dataset: Dataset, count: int) -> VerificationSamples:
    """Return the contexts that the bundle is verified on: a classifier's have every id that text can yield.

    Raises:
        UserError: The dataset has no contexts.
    """
    if head == "template":
        rows, ids = dataset_samples.labelled_windows(dataset, source.window), source.tokenizer.text_ids
    else:  # which predicts little after unrelated ids: its many near ties would hide those of documents
        rows, ids = dataset_samples.documents(dataset, source.tokenizer, source.window.limit), []
    return samples.choose(rows, source.window.buckets, count, ids)


def save(model: ir.Model, folder: Path) -> None:
    """Write model.onnx; above 2 GB the weights go to model.onnx.data, with one tensor in memory at a time."""
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    ir.save(model, folder / bundle.ONNX, external_data=DATA if size > INLINE_BYTES else None)


def verify_against_run(
    model: Path, reference: FlaxNetwork, chosen: VerificationSamples, source: Run, dtype: str
) -> verify.Agreement:
    """Return the comparison of a graph that matches the run.

    Raises:
        UserError: The graph differs; the message states the difference and the first diverging layer.
    """
    figures = compare_with_run(model, reference, chosen, source)
    faults = verify.find_faults(figures, dtype)
    if faults:
        row = max(chosen.rows, key=len)
        ids, _ = pad_rows([row], len(row))
        layer = localize.first_diverging_layer(model, row, reference.residuals(ids), dtype, reference.head_position)
        advice = verify.describe_small_sample(figures, dtype) or "for fp16 try --wide_residual=true or --dtype=fp32"
        raise UserError(
            f"the ONNX graph does not match {source.folder}: {'; '.join(faults)}. Activations first diverge at "
            f"{layer}. Nothing was written; {advice}"
        )
    return figures


def compare_with_run(model: Path, reference: FlaxNetwork, chosen: VerificationSamples, source: Run) -> verify.Agreement:
    """Compare a graph with the run."""
    return verify.compare(reference, OnnxRuntime(model), chosen.rows, source.window.buckets, sys.stderr.isatty())


def write_tokenizer_and_templates(folder: Path, source: Run) -> None:
    """Write tokenizer.json and templates.json."""
    (folder / "tokenizer.json").write_text(source.tokenizer.json, encoding="utf-8")
    templates: Sequence[Template] = source.templates
    files.write_json(folder / "templates.json", [dataclasses.asdict(template) for template in templates])


def manifest_facts(source: Run, step: int, config: ConvertOnnxConfig) -> dict[str, Any]:
    """Return the entries of `bundle.json` on the model: the run's name and sums, and no text of its contexts."""
    window, options = source.window, graph_options(source, config, quantize.float_type(config))
    return {
        "model": bundle.ONNX,
        "head": options.head,
        "dtype": options.dtype,
        "wide_residual": options.wide_residual,
        "form": options.form,  # `chunked` was `parted` in earlier versions; nothing reads it but people
        "window": window.limit,
        "role_tags": window.role_tags,
        "special_tokens": window.special_tokens,
        "temperature": source.temperature(step),
        "slots": max(options.slots, source.outputs),
        "buckets": list(window.buckets),
        "redaction": source.manifest.get("redaction"),
        "run": {
            "name": source.folder.resolve().name,
            "step": step,
            "size": source.manifest["size"],
            "manifest_sha256": files.sha256(source.folder / "manifest.json"),
            "datasets": sorted(source.manifest["datasets"].values()),
        },
    }


def verification(figures: verify.Agreement, chosen: VerificationSamples) -> Mapping[str, Any]:
    """Return the verify figures with their contexts: how many of each length are real, and how many are made."""
    return {"against": "flax", **samples.to_dict(chosen), **verify.to_dict(figures)}
