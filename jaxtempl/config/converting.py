"""The configuration of `bin/convert`."""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxtempl.config.fields import option

Dtype = Literal["fp32", "fp16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertHuggingfaceConfig:
    """Convert a run to a folder that transformers loads."""

    run: str = option("", "RUN, RUN@STEP, RUN@last or RUN@best.")
    out: Path = option(Path("converted"), "Folder to write.")
    license: str = option("unknown", "Licence of the weights in the model card, by the hub's name, such as apache-2.0.")
    language: tuple[str, ...] = option(("en",), "ISO 639 codes of the transcripts' languages, for the model card.")
    verbose: bool = option(False, "Print the resolved config.", recorded=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertOnnxConfig:
    """Convert a run to a bundle: an ONNX graph, verified against the run on real contexts, with all serving files."""

    run: str = option("", "RUN, RUN@STEP, RUN@last or RUN@best.")
    data: str = option("", "Dataset of the contexts (default: the run's own).")
    out: Path = option(Path("bundle"), "Folder to write.")
    overwrite: bool = option(False, "Replace --out if it is a bundle.")
    head: Literal["auto", "template", "lm"] = option(
        "auto", "Head that the run must have: template, or lm for a language model."
    )
    dtype: Dtype = option("fp32", "Type of weights and activations; the head is float32 in both.")
    wide_residual: bool = option(False, "Keep the residual stream in float32 with --dtype=fp16.")
    form: Literal["auto", "fused", "chunked", "plain"] = option(
        "auto",
        "Attention as one operator (fused), as one operator for each of four chunks of queries (chunked, faster on "
        "CPUs and the choice of auto with fp32), or as matrix products (plain, opset 20).",
    )
    slots: int = option(
        0, "Columns of the template head, including spare ones for new templates (default: as trained).", minimum=0
    )
    verify_contexts: int = option(1000, "Number of real contexts to verify the bundle on.", minimum=1)
    quantize: Literal["none", "int8", "tensorrt-int8", "tensorrt-fp8"] = option(
        "none",
        "Quantization: int8 for ONNX Runtime (with fp32), tensorrt-int8 for GPUs from compute capability 8.6, "
        "tensorrt-fp8 from 8.9 (both with fp16).",
    )
    gate_contexts: int = option(5000, "Number of labelled test contexts that --quantize is judged on.", minimum=1)
    calibrate_contexts: int = option(
        512, "Number of training contexts that --quantize=tensorrt-... measures its scales on.", minimum=1
    )
    force: bool = option(False, "Write the quantized bundle even if its suggestions are worse than the run's.")
    verbose: bool = option(False, "Print the resolved config.", recorded=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertTensorrtConfig:
    """Convert an ONNX bundle to a bundle with a TensorRT engine for the GPU of this machine; needs no JAX."""

    bundle: str = option("", "Folder of the ONNX bundle, made with --dtype=fp16.")
    cases: str = option("", 'Cases to verify the engine on, {"messages": [...]} a line.')
    out: Path = option(Path("engine"), "Folder to write.")
    max_batch_size: int = option(8, "Maximum rows of a batch; the engine is tuned for one.", minimum=1, was="batch")
    timing_cache: str = option(
        "", "File of kernel timings, which makes the next build faster; created if it does not exist."
    )
    refit: str = option("", "Folder of an older engine that takes the bundle's head; no engine is built then.")
    verify_contexts: int = option(1000, "Number of contexts to compare engine and bundle on.", minimum=1)
    check: bool = option(False, "Report what tensorrt-rtx makes of the graph and write nothing; needs no GPU.")
    compute_capability: str = option("8.6", "Compute capability that --check builds for (8.6 is the A10's).")
    verbose: bool = option(False, "Print the resolved config.", recorded=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertTritonConfig:
    """Convert a bundle to a version of a model in a Triton model repository."""

    bundle: str = option("", "Folder of the bundle, with model.plan or model.onnx.")
    out: Path = option(Path("models"), "Model repository; an existing model gets the bundle as its next version.")
    name: str = option("templates", "Name of the model; two kinds of bundle in one repository need two names.")
    device: Literal["gpu", "cpu"] = option("gpu", "Device of a new ONNX model; an engine always runs on a GPU.")
    max_batch_size: int = option(4, "Maximum requests that a new model computes at once.", minimum=1, was="max_batch")
    timeout_ms: int = option(100, "Maximum milliseconds that a request waits in a new model's queue.", minimum=1)
    verbose: bool = option(False, "Print the resolved config.", recorded=False)
