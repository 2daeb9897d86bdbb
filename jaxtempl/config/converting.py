"""The settings of `bin/convert`."""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxtempl.config.fields import option

Dtype = Literal["fp32", "fp16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertHuggingfaceConfig:
    """A run -> a folder that transformers loads."""

    run: str = option("", "RUN, RUN@STEP, RUN@last or RUN@best")
    out: Path = option(Path("converted"), "folder to write")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertOnnxConfig:
    """A run -> a bundle: an ONNX graph that was held to the run on real contexts, with all that serving it needs."""

    run: str = option("", "RUN, RUN@STEP, RUN@last or RUN@best")
    data: str = option("", "dataset of the contexts (default: the one that the run was trained on)")
    out: Path = option(Path("bundle"), "folder to write")
    overwrite: bool = option(False, "replace --out when it is a bundle")
    head: Literal["auto", "template", "lm"] = option(
        "auto", "what the run must have: a template or a language-model head"
    )
    dtype: Dtype = option("fp32", "of weights and activations; the head is float32 in both")
    wide_residual: bool = option(False, "keep the residual stream in float32 where --dtype=fp16")
    form: Literal["auto", "fused", "chunked", "plain"] = option(
        "auto", "attention as one operator, in four (faster on CPUs; of auto, fp32), or as products (opset 20)"
    )
    slots: int = option(
        0, "columns of the template head, the spare ones for templates to come (default: as trained)", least=0
    )
    verify_contexts: int = option(1000, "real contexts that the bundle is held to the run on", least=1)
    quantize: Literal["none", "int8", "tensorrt-int8", "tensorrt-fp8"] = option(
        "none", "int8: of fp32, for ONNX Runtime; tensorrt-...: of fp16, for GPUs from 8.6 (int8) or 8.9 (fp8) on"
    )
    gate_contexts: int = option(5000, "of --quantize: labelled test contexts that decide on it", least=1)
    calibrate_contexts: int = option(
        512, "of --quantize=tensorrt-...: training contexts that scales are measured on", least=1
    )
    force: bool = option(False, "of --quantize: write the bundle even if it suggests worse than the run")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertTensorrtConfig:
    """An ONNX bundle -> a bundle with a TensorRT engine for the GPU of this machine; needs no JAX."""

    bundle: str = option("", "folder of the ONNX bundle, of --dtype=fp16")
    cases: str = option("", 'cases to verify the engine on, {"messages": [...]} a line')
    out: Path = option(Path("engine"), "folder to write")
    max_batch_size: int = option(8, "most rows at a time; one is what is tuned for", least=1, was="batch")
    timing_cache: str = option("", "file of what was timed, which makes the next build quicker; made if missing")
    refit: str = option("", "folder of an older engine that takes the bundle's head; nothing is built then")
    verify_contexts: int = option(1000, "contexts that the engine is held to the bundle on", least=1)
    check: bool = option(False, "needs no GPU: only say what tensorrt-rtx makes of the graph")
    compute_capability: str = option("8.6", "of --check: what to build for (8.6 is the A10's)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertTritonConfig:
    """A bundle -> a version of a model in a Triton model repository."""

    bundle: str = option("", "folder of the bundle, with model.plan or model.onnx")
    out: Path = option(Path("models"), "model repository; a model that is there gets the bundle as its next version")
    name: str = option("templates", "of the model; two kinds of bundle in one repository need two names")
    device: Literal["gpu", "cpu"] = option("gpu", "of a new ONNX model; an engine runs on a GPU")
    max_batch_size: int = option(4, "of a new model: most requests computed at once", least=1, was="max_batch")
    timeout_ms: int = option(100, "of a new model: longest wait in the queue", least=1)
