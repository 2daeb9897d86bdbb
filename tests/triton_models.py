"""Bundles converted for Triton by the real command, and a parser of their configuration."""

import dataclasses
import importlib.metadata
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx_ir as ir
from google.protobuf import text_format
from tiny import ARCHITECTURE, template

from converters.onnx import graph, layers
from converters.triton.convert import main
from jaxtempl import files
from jaxtempl.bundle import bundle
from jaxtempl.config.converting import ConvertTritonConfig
from jaxtempl.config.paths import ASSETS
from jaxtempl.models import factory
from jaxtempl.text.cases import Template

BUCKETS = [16, 32, 64]
SLOTS = 6
TEMPLATES = [template(0, "greet"), template(1, "old reply", active=False), template(2, "card"), template(3, "bye")]
FACTS: dict[str, Any] = {
    "head": "template",
    "dtype": "fp32",
    "window": 64,
    "role_tags": False,
    "special_tokens": 0,
    "temperature": 1.0,
    "slots": SLOTS,
    "buckets": BUCKETS,
    "run": {"name": "tiny"},
    "verify": {},
}


def model_config_pb2() -> Any:
    """Load Triton's messages without its client, which needs gRPC."""
    path = importlib.metadata.distribution("tritonclient").locate_file("tritonclient/grpc/model_config_pb2.py")
    spec: Any = importlib.util.spec_from_file_location("model_config_pb2", str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def engine(batch: int, lengths: list[int] = BUCKETS) -> dict[str, Any]:
    """Return the entries of bundle.json that `bin/convert tensorrt` writes for a plan."""
    return {"gpu": "NVIDIA A10", "profiles": [{"length": length, "batch": batch} for length in lengths]}


PB2 = model_config_pb2()
WIDTH = {PB2.TYPE_INT32: 4, PB2.TYPE_FP32: 4}


def make_bundle(folder: Path, network: Path | None, templates: list[Template] = TEMPLATES, **facts: Any) -> Path:
    """Write a bundle of a network, or of an engine if `network` is None."""
    folder.mkdir(parents=True)
    if network:
        for path in network.iterdir():
            shutil.copyfile(path, folder / path.name)
    else:
        (folder / "model.plan").write_bytes(b"an engine")
    (folder / "tokenizer.json").write_text((ASSETS / "nano" / "tokenizer.json").read_text())
    files.write_json(folder / "templates.json", [dataclasses.asdict(t) for t in templates])
    kind = {"model": "model.onnx"} if network else {"model": "model.plan", "engine": engine(8)}
    bundle.write_manifest(folder, FACTS | kind | facts)
    return folder


def convert(given: Path, out: Path, **flags: Any) -> Any:
    """Convert a bundle and return the parsed model configuration."""
    main(ConvertTritonConfig(bundle=str(given), out=out, **flags))
    return parse_config(out / flags.get("name", "templates"))


def parse_config(model: Path) -> Any:
    return text_format.Parse((model / "config.pbtxt").read_text(), PB2.ModelConfig())


def save_network(folder: Path) -> Path:
    """Write model.onnx and its external data."""
    params = jax.tree.map(np.asarray, factory.random_params(ARCHITECTURE, len(TEMPLATES), 0))
    model = graph.build(params, ARCHITECTURE, layers.GraphOptions("template", slots=SLOTS))
    ir.save(model, folder / "model.onnx", external_data="model.onnx.data")
    return folder
