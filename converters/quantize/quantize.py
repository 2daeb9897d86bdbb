"""A float graph -> a quantized graph, accepted only if it still suggests the templates that advocates sent."""

import dataclasses
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnx_ir as ir

from converters.quantize import calibrate, dynamic_int8, gate, page, qdq
from converters.quantize import report as quantize_report
from converters.quantize.gate import GateContexts, GateVerdict
from converters.quantize.report import NetworkFigures, format_table, measure_latencies, model_bytes
from converters.verify.verify import TokenIds
from jaxtempl.bundle import bundle
from jaxtempl.config.converting import ConvertOnnxConfig, Dtype
from jaxtempl.data.dataset import Dataset
from jaxtempl.data.examples import LabelledContexts
from jaxtempl.errors import UsageError, UserError
from jaxtempl.runs.run import Run
from jaxtempl.serve.inference.backends import OnnxRuntime

CALIBRATION = "train"  # split of calibration; the gate reads another one
FLOATS: tuple[Dtype, ...] = ("fp32", "fp16")

Build = Callable[[Dtype], ir.Model]
Save = Callable[[ir.Model, Path], None]


class QuantizeSamples(NamedTuple):
    """Contexts that a graph is quantized and evaluated with.

    Attributes:
        source: The run.
        labelled: Contexts of the gate.
        calibration: Contexts that static scales are measured on; empty for dynamic scales.
        dataset: Fingerprint of the dataset of both.
        buckets: Lengths in tokens that latency is measured at.
    """

    source: Run
    labelled: GateContexts
    calibration: Sequence[TokenIds]
    dataset: str
    buckets: Sequence[int]


class QuantizeResult(NamedTuple):
    """The result of quantization.

    Attributes:
        verdict: Verdict of the gate.
        networks: Figures of fp32, fp16 and the quantized network.
        facts: Entries of bundle.json.
    """

    verdict: GateVerdict
    networks: list[NetworkFigures]
    facts: dict[str, Any]


def float_type(config: ConvertOnnxConfig) -> Dtype:
    """Return the type of the floats: as requested, or the type that the quantized graph is made from.

    Raises:
        UsageError: The requested type does not go with the quantization.
    """
    if config.quantize == "none":
        return config.dtype
    if config.quantize == "int8" and config.dtype == "fp16":
        raise UsageError("--quantize=int8 is made from fp32, not from --dtype=fp16; leave one of them out")
    return "fp32" if config.quantize == "int8" else "fp16"


def collect_samples(source: Run, dataset: Dataset, config: ConvertOnnxConfig) -> QuantizeSamples | None:
    """Read the contexts before anything is built; return None without quantization.

    Raises:
        UserError: The run is a language model, or the dataset lacks labelled contexts.
    """
    if config.quantize == "none":
        return None
    if source.phase != "finetune":
        raise UserError(
            f"--quantize={config.quantize} is checked on labelled contexts, and {source.folder} is a language model; "
            "name a finetune run"
        )
    labelled = gate.read_gate_contexts(source, dataset, config.gate_contexts)
    has_static_scales = config.quantize in qdq.FORMATS
    rows = _calibration_rows(source, dataset, config.calibrate_contexts) if has_static_scales else []
    return QuantizeSamples(source, labelled, rows, dataset.fingerprint, source.window.buckets)


def _calibration_rows(source: Run, dataset: Dataset, count: int) -> Sequence[TokenIds]:
    contexts = LabelledContexts.read(dataset, CALIBRATION, source.window).sample(None, 0).with_text().take(slice(count))
    if not len(contexts):
        raise UserError(
            f"{dataset.folder} has no labelled {CALIBRATION} contexts to measure scales on; pass --data=DIR"
        )
    return [contexts[i].tokens for i in range(len(contexts))]


def quantize_bundle(
    folder: Path, build: Build, save: Save, samples: QuantizeSamples, config: ConvertOnnxConfig
) -> QuantizeResult:
    """Replace the float model of `folder` by a quantized model that passes the gate.

    Args:
        folder: Unfinished bundle with model.onnx, of type `float_type`, and its external data.
        build: Builds the graph in either float type.
        save: Saves a model as model.onnx in a folder.
        samples: Contexts of calibration and gate.
        config: Configuration of the conversion.

    Raises:
        UserError: The quantized model does not pass, and `--force` is not set.
    """
    scratch = folder / "work"
    folders = _save_float_models(folder, scratch, build, save, float_type(config))
    model = folders[float_type(config)] / bundle.ONNX
    save(_quantize(model, scratch, samples.calibration, config.quantize), folder)
    result = _evaluate({**folders, config.quantize: folder}, samples, config)
    shutil.rmtree(scratch)
    return result


def _save_float_models(folder: Path, scratch: Path, build: Build, save: Save, base: Dtype) -> dict[str, Path]:
    """Return a folder of each float model; the model of type `base` is moved, the other is built."""
    for dtype in FLOATS:
        (scratch / dtype).mkdir(parents=True)
        if dtype != base:
            save(build(dtype), scratch / dtype)
    for path in folder.glob(f"{bundle.ONNX}*"):
        path.rename(scratch / base / path.name)
    return {dtype: scratch / dtype for dtype in FLOATS}


def _quantize(model: Path, scratch: Path, rows: Sequence[TokenIds], method: str) -> ir.Model:
    if method == "int8":
        dynamic_int8.quantize(model, scratch / "int8.onnx")
        return _load(scratch / "int8.onnx")
    graph = _load(model)
    names = qdq.quantized_activations(graph)
    return qdq.insert_qdq(graph, calibrate.absolute_maxima(model, names, rows, sys.stderr.isatty()), method)


def _load(path: Path) -> ir.Model:
    """Load a model whose external weights are read when it is saved again."""
    model = ir.load(path)
    for value in model.graph.initializers.values():
        if isinstance(tensor := value.const_value, ir.ExternalTensor):
            value.const_value = _lazy(tensor)
    return model


def _lazy(tensor: ir.ExternalTensor) -> ir.LazyTensor:
    return ir.LazyTensor(lambda: ir.Tensor(tensor.numpy()), tensor.dtype, tensor.shape, name=tensor.name)


def _evaluate(folders: Mapping[str, Path], samples: QuantizeSamples, config: ConvertOnnxConfig) -> QuantizeResult:
    """Score and time the networks; raises UserError if the quantized one is rejected."""
    machine = quantize_report.machine()
    networks = {
        name: OnnxRuntime(folder / bundle.ONNX, machine["threads"], spin=False) for name, folder in folders.items()
    }
    scores = gate.score(networks, samples.labelled, sys.stderr.isatty())
    verdict = gate.judge(scores["fp32"], scores[config.quantize], samples.labelled, samples.source.templates)
    _reject_worse(verdict, samples, config)
    # ONNX Runtime's time of a graph for TensorRT says nothing about TensorRT.
    lengths = samples.buckets if config.quantize == "int8" else []
    times = measure_latencies(networks, lengths, samples.labelled.rows[0], sys.stderr.isatty())
    figures = [
        NetworkFigures(name, model_bytes(folder), float(scores[name].hits.mean()), times[name])
        for name, folder in folders.items()
    ]
    measured = {"figures": [dataclasses.asdict(network) for network in figures], "machine": machine}
    return QuantizeResult(verdict, figures, _facts(verdict, measured, samples, config))


def _reject_worse(verdict: GateVerdict, samples: QuantizeSamples, config: ConvertOnnxConfig) -> None:
    faults = gate.faults(verdict)
    if faults and not config.force:
        reasons = "; ".join(faults + gate.caveats(verdict))
        raise UserError(
            f"{config.quantize} changes the suggestions of {samples.source.folder}: {reasons}. Nothing was written; "
            "pass --force=true to write it anyway"
        )


def _facts(
    verdict: GateVerdict, measured: Mapping[str, Any], samples: QuantizeSamples, config: ConvertOnnxConfig
) -> dict[str, Any]:
    gate_facts = {**gate.to_dict(verdict), "forced": bool(gate.faults(verdict))}
    facts = {"dataset": samples.dataset, "gate": gate_facts, **measured}
    if config.quantize not in qdq.FORMATS:
        return {"dtype": config.quantize, "quantize": facts}
    facts["calibration"] = {"split": CALIBRATION, "contexts": len(samples.calibration), "scales": "largest magnitude"}
    required = qdq.FORMATS[config.quantize].compute_capability
    return {"dtype": config.quantize, "compute_capability": required, "quantize": facts}


def write_report(out: Path, result: QuantizeResult, name: str) -> str:
    """Write the page of a bundle next to it, and return its summary in a few lines.

    Args:
        out: Folder of the bundle.
        result: Result of `quantize_bundle`.
        name: Name of the run and its step.
    """
    path = out.with_name(f"{out.name}.html")
    page.write(path, name, result.verdict, result.networks, result.facts["quantize"])
    faults, doubts = gate.faults(result.verdict), gate.caveats(result.verdict)
    lines = [format_table(result.networks), f"gate: {result.verdict.overall.summary()}"]
    lines += [f"the gate is weak here: {'; '.join(doubts)}"] if doubts else []
    lines += [f"forced, despite {'; '.join(faults)}"] if faults else []
    return "\n".join([*lines, f"page: {path}"])
