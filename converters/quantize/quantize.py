"""A float graph -> a quantised one, which is let through only when it still suggests what people sent."""

import dataclasses
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnx_ir as ir

from converters.quantize import calibrate, dynamic_int8, gate, page, qdq
from converters.quantize import report as quantize_report
from converters.quantize.gate import GateVerdict, Labelled
from converters.quantize.report import NetworkFigures, format_table, measure_latencies, model_bytes
from converters.verify.verify import Row
from jaxtempl.bundle import bundle
from jaxtempl.config.converting import ConvertOnnxConfig, Dtype
from jaxtempl.data.dataset import Dataset
from jaxtempl.data.examples import LabelledContexts
from jaxtempl.errors import UsageError, UserError
from jaxtempl.runs.run import Run
from jaxtempl.serve.inference.backends import OnnxRuntime

CALIBRATION = "train"  # the split; the gate's is another
FLOATS: tuple[Dtype, ...] = ("fp32", "fp16")

Build = Callable[[Dtype], ir.Model]
Save = Callable[[ir.Model, Path], None]


class QuantizeSamples(NamedTuple):
    """What a graph is quantised and judged with.

    Attributes:
        found: the run.
        labelled: contexts of the gate.
        calibration: contexts that static scales are measured on; none where scales are not static.
        dataset: fingerprint of where both are from.
        buckets: lengths that latency is measured at.
    """

    found: Run
    labelled: Labelled
    calibration: Sequence[Row]
    dataset: str
    buckets: Sequence[int]


class QuantizeResult(NamedTuple):
    """What came of it.

    Attributes:
        verdict: of the gate.
        lines: fp32, fp16 and the quantised network.
        facts: keys of bundle.json.
    """

    verdict: GateVerdict
    lines: list[NetworkFigures]
    facts: dict[str, Any]


def float_type(config: ConvertOnnxConfig) -> Dtype:
    """The type of the floats: as asked for, or what the quantised graph is made from.

    Raises:
        UsageError: another one was asked for.
    """
    if config.quantize == "none":
        return config.dtype
    if config.quantize == "int8" and config.dtype == "fp16":
        raise UsageError("--quantize=int8 is made from fp32, not from --dtype=fp16; leave one of them out")
    return "fp32" if config.quantize == "int8" else "fp16"


def collect_samples(found: Run, dataset: Dataset, config: ConvertOnnxConfig) -> QuantizeSamples | None:
    """The contexts, read before anything is built; None where nothing is to be quantised.

    Raises:
        UserError: the run is a language model, or the dataset lacks labelled contexts.
    """
    if config.quantize == "none":
        return None
    if found.phase != "finetune":
        raise UserError(
            f"--quantize={config.quantize} is held to labelled contexts, and {found.folder} is a language model; "
            "name a finetune run"
        )
    labelled = gate.labelled(found, dataset, config.gate_contexts)
    static = config.quantize in qdq.FORMATS
    rows = _calibration(found, dataset, config.calibrate_contexts) if static else []
    return QuantizeSamples(found, labelled, rows, dataset.fingerprint, found.window.buckets)


def _calibration(found: Run, dataset: Dataset, count: int) -> Sequence[Row]:
    contexts = LabelledContexts.read(dataset, CALIBRATION, found.window).sample(None, 0).with_text().take(slice(count))
    if not len(contexts):
        raise UserError(
            f"{dataset.folder} has no labelled {CALIBRATION} contexts to measure scales on; pass --data=DIR"
        )
    return [contexts[i].tokens for i in range(len(contexts))]


def quantize_bundle(
    folder: Path, build: Build, save: Save, given: QuantizeSamples, config: ConvertOnnxConfig
) -> QuantizeResult:
    """Puts a quantised model in the place of `folder`'s float one, of `float_type`, if it passes the gate.

    Args:
        folder: of the bundle in the making; model.onnx and its external data lie in it.
        build: the graph in either float type.
        save: stores a model as model.onnx in a folder.
        given: contexts.
        config: of the conversion.

    Raises:
        UserError: the quantised model does not pass, and is not forced.
    """
    work = folder / "work"
    places = _floats(folder, work, build, save, float_type(config))
    model = places[float_type(config)] / bundle.ONNX
    save(_quantized(model, work, given.calibration, config.quantize), folder)
    outcome = _judged({**places, config.quantize: folder}, given, config)
    shutil.rmtree(work)
    return outcome


def _floats(folder: Path, work: Path, build: Build, save: Save, base: Dtype) -> dict[str, Path]:
    """A folder of each float model; that of type `base` is moved there."""
    for dtype in FLOATS:
        (work / dtype).mkdir(parents=True)
        if dtype != base:
            save(build(dtype), work / dtype)
    for path in folder.glob(f"{bundle.ONNX}*"):
        path.rename(work / base / path.name)
    return {dtype: work / dtype for dtype in FLOATS}


def _quantized(model: Path, work: Path, rows: Sequence[Row], method: str) -> ir.Model:
    if method == "int8":
        dynamic_int8.quantize(model, work / "int8.onnx")
        return _loaded(work / "int8.onnx")
    graph = _loaded(model)
    return qdq.insert_qdq(
        graph, calibrate.absolute_maxima(model, qdq.quantized_activations(graph), rows, sys.stderr.isatty()), method
    )


def _loaded(path: Path) -> ir.Model:
    """A stored model whose weights, wherever they lie, are read when it is stored again."""
    model = ir.load(path)
    for value in model.graph.initializers.values():
        if isinstance(tensor := value.const_value, ir.ExternalTensor):
            value.const_value = _read_later(tensor)
    return model


def _read_later(tensor: ir.ExternalTensor) -> ir.LazyTensor:
    return ir.LazyTensor(lambda: ir.Tensor(tensor.numpy()), tensor.dtype, tensor.shape, name=tensor.name)


def _judged(places: Mapping[str, Path], given: QuantizeSamples, config: ConvertOnnxConfig) -> QuantizeResult:
    machine = quantize_report.machine()
    networks = {
        name: OnnxRuntime(place / bundle.ONNX, machine["threads"], spin=False) for name, place in places.items()
    }
    scored = gate.score(networks, given.labelled, sys.stderr.isatty())
    verdict = gate.judge(scored["fp32"], scored[config.quantize], given.labelled, given.found.templates)
    _refuse_worse(verdict, given, config)
    # ONNX Runtime's time for a graph of TensorRT's says nothing
    lengths = given.buckets if config.quantize == "int8" else []
    took = measure_latencies(networks, lengths, given.labelled.rows[0], sys.stderr.isatty())
    lines = [
        NetworkFigures(name, model_bytes(place), float(scored[name].hits.mean()), took[name])
        for name, place in places.items()
    ]
    told = {"figures": [dataclasses.asdict(line) for line in lines], "machine": machine}
    return QuantizeResult(verdict, lines, _facts(verdict, told, given, config))


def _refuse_worse(verdict: GateVerdict, given: QuantizeSamples, config: ConvertOnnxConfig) -> None:
    faults = gate.faults(verdict)
    if faults and not config.force:
        why = "; ".join(faults + gate.doubts(verdict))
        raise UserError(
            f"{config.quantize} changes what {given.found.folder} suggests: {why}. Nothing was written; --force=true "
            "writes it all the same"
        )


def _facts(
    verdict: GateVerdict, told: Mapping[str, Any], given: QuantizeSamples, config: ConvertOnnxConfig
) -> dict[str, Any]:
    judged = {**gate.as_json(verdict), "forced": bool(gate.faults(verdict))}
    known = {"dataset": given.dataset, "gate": judged, **told}
    if config.quantize not in qdq.FORMATS:
        return {"dtype": config.quantize, "quantize": known}
    known["calibration"] = {"split": CALIBRATION, "contexts": len(given.calibration), "scales": "largest magnitude"}
    needed = qdq.FORMATS[config.quantize].compute_capability
    return {"dtype": config.quantize, "compute_capability": needed, "quantize": known}


def write_report(out: Path, outcome: QuantizeResult, name: str) -> str:
    """Writes the page of a bundle beside it, and says the same in a few lines.

    Args:
        out: the bundle's folder.
        outcome: of `replace`.
        name: of the run and its step.
    """
    path = out.with_name(f"{out.name}.html")
    page.write(path, name, outcome.verdict, outcome.lines, outcome.facts["quantize"])
    doubts = gate.doubts(outcome.verdict)
    said = [format_table(outcome.lines), f"gate: {outcome.verdict.overall.told()}"]
    said += [f"the gate says little: {'; '.join(doubts)}"] if doubts else []
    said += [f"forced, for {'; '.join(gate.faults(outcome.verdict))}"] if gate.faults(outcome.verdict) else []
    return "\n".join([*said, f"page: {path}"])
