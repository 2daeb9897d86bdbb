"""Whether an ONNX file may be opened: its external data, its sizes and its operators are looked at before it is run.

Who writes a model.onnx decides which files its runtime reads and how much memory it takes, so one that comes from
elsewhere is not opened before this. No JAX.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from jaxtempl import files
from jaxtempl.errors import UserError

MAX_BYTES = 2**31  # protobuf's own limit
STANDARD = ("", "ai.onnx")


def check_onnx(path: Path, listed: Mapping[str, int]) -> None:
    """Looks at the graph without reading its external data.

    Args:
        path: the model.
        listed: bytes of each file that external data may be in, by name.

    Raises:
        UserError: no ONNX model; external data that is absolute, leaves the folder, goes through a link, is in a file
            not listed or beyond its end; a tensor whose bytes are not as many as its shape needs; or an operator that
            is not ONNX's own.
    """
    model = load_graph(path)
    strange = sorted({node.domain for node in nodes(model.graph)} - set(STANDARD))
    strange += [function.name for function in model.functions]
    if strange:
        raise UserError(f"{path} uses operators outside the ONNX standard ({', '.join(strange)}); they are not run")
    for tensor in tensors(model.graph):
        _check_tensor(path, tensor, listed)


def load_graph(path: Path) -> onnx.ModelProto:
    """The model without its external data.

    Raises:
        UserError: larger than any ONNX file, or not one.
    """
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes; an ONNX file has at most {MAX_BYTES:,}")
    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise UserError(f"{path} is no ONNX model ({error}); convert the run again") from None


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of the graphs inside nodes included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes(inner)


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that the graph holds: initializers, sparse ones and attributes, those inside of nodes included."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (t for t in (attribute.t, *attribute.tensors) if t.ByteSize())
        for sparse in (s for s in (attribute.sparse_tensor, *attribute.sparse_tensors) if s.ByteSize()):
            yield from (sparse.values, sparse.indices)
        for inner in (attribute.g, *attribute.graphs):
            yield from tensors(inner)


def _check_tensor(path: Path, tensor: onnx.TensorProto, listed: Mapping[str, int]) -> None:
    needed = _bytes(path, tensor)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        place = {entry.key: entry.value for entry in tensor.external_data}
        _check_place(path, tensor.name, place, needed, listed)
    elif tensor.HasField("raw_data") and len(tensor.raw_data) != needed:
        raise UserError(f"{path}: {tensor.name} has {len(tensor.raw_data):,} bytes and its shape needs {needed:,}")
    elif not tensor.HasField("raw_data") and needed > 16 * tensor.ByteSize():
        raise UserError(f"{path}: {tensor.name} has too few values for its shape, which needs {needed:,} bytes")


def _bytes(path: Path, tensor: onnx.TensorProto) -> int:
    if any(dim < 0 for dim in tensor.dims):
        raise UserError(f"{path}: {tensor.name} has the shape {list(tensor.dims)}; no dim is negative")
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return math.prod(tensor.dims) * kind.itemsize


def _check_place(path: Path, name: str, place: Mapping[str, Any], needed: int, listed: Mapping[str, int]) -> None:
    location = place.get("location", "")
    files.contained(path.parent, location)
    if location not in listed:
        raise UserError(f"{path}: {name} is in {location!r}, which is none of the bundle's files")
    try:
        offset, length = int(place.get("offset", 0)), int(place.get("length", needed))
    except ValueError:
        raise UserError(f"{path}: the place of {name} in {location} is no number") from None
    if length != needed or offset < 0 or offset + needed > listed[location]:
        raise UserError(
            f"{path}: {name} needs {needed:,} bytes and is told to lie at {offset:,} to {offset + length:,} of "
            f"{location}, which has {listed[location]:,}"
        )
