"""Check an ONNX file before a runtime opens it: external data, tensor sizes and operators. No JAX.

The author of a model.onnx decides which files its runtime reads and how much memory it takes. A model from elsewhere
is therefore checked first.
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
IDS = "input_ids"  # the input of token ids


def check_onnx(path: Path, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """Check the graph without reading its external data, and return it.

    Args:
        path: The model.
        sizes: Bytes of each file that may hold external data, by name.

    Raises:
        UserError: The file is not an ONNX model. Or external data is absolute, leaves the folder, goes through a link,
            is in a file that is not listed, or exceeds it. Or a tensor's bytes do not match its shape. Or an operator
            is not part of the ONNX standard.
    """
    model = load_graph(path)
    custom = sorted({node.domain for node in nodes(model.graph)} - set(STANDARD))
    custom += [function.name for function in model.functions]
    if custom:
        raise UserError(f"{path} uses operators outside the ONNX standard ({', '.join(custom)}); they are not run")
    for tensor in tensors(model.graph):
        _check_tensor(path, tensor, sizes)
    return model


def embedding_rows(model: onnx.ModelProto) -> int | None:
    """Return the rows of the table that `input_ids` index, or None where no table is indexed by them alone."""
    tables = {node.input[0] for node in model.graph.node if node.op_type == "Gather" and node.input[1] == IDS}
    rows = [tensor.dims[0] for tensor in model.graph.initializer if tensor.name in tables and tensor.dims]
    return min(rows, default=None)


def load_graph(path: Path) -> onnx.ModelProto:
    """Load the model without its external data.

    Raises:
        UserError: The file is larger than any ONNX file, or is not one.
    """
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes; an ONNX file has at most {MAX_BYTES:,}")
    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise UserError(f"{path} is not an ONNX model ({error}); convert the run again") from None


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every node, including those of graphs inside nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes(inner)


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor that the graph holds: dense and sparse initializers and attributes, of inner graphs too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (t for t in (attribute.t, *attribute.tensors) if t.ByteSize())
        for sparse in (s for s in (attribute.sparse_tensor, *attribute.sparse_tensors) if s.ByteSize()):
            yield from (sparse.values, sparse.indices)
        for inner in (attribute.g, *attribute.graphs):
            yield from tensors(inner)


def _check_tensor(path: Path, tensor: onnx.TensorProto, sizes: Mapping[str, int]) -> None:
    needed = _tensor_bytes(path, tensor)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        location = {entry.key: entry.value for entry in tensor.external_data}
        _check_location(path, tensor.name, location, needed, sizes)
    elif tensor.HasField("raw_data") and len(tensor.raw_data) != needed:
        raise UserError(f"{path}: {tensor.name} has {len(tensor.raw_data):,} bytes; its shape needs {needed:,}")
    elif not tensor.HasField("raw_data") and needed > 16 * tensor.ByteSize():
        raise UserError(f"{path}: {tensor.name} has too few values for its shape, which needs {needed:,} bytes")


def _tensor_bytes(path: Path, tensor: onnx.TensorProto) -> int:
    """Return the bytes that the tensor's shape and type need."""
    if any(dim < 0 for dim in tensor.dims):
        raise UserError(f"{path}: {tensor.name} has the shape {list(tensor.dims)}; no dimension may be negative")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return math.prod(tensor.dims) * dtype.itemsize


def _check_location(path: Path, name: str, entry: Mapping[str, Any], needed: int, sizes: Mapping[str, int]) -> None:
    """Check that a tensor's external data lies inside a listed file."""
    location = entry.get("location", "")
    files.contained(path.parent, location)
    if location not in sizes:
        raise UserError(f"{path}: {name} is in {location!r}, which is none of the bundle's files")
    try:
        offset, length = int(entry.get("offset", 0)), int(entry.get("length", needed))
    except ValueError:
        raise UserError(f"{path}: offset or length of {name} in {location} is not a number") from None
    if length != needed or offset < 0 or offset + needed > sizes[location]:
        raise UserError(
            f"{path}: {name} needs {needed:,} bytes and claims {offset:,} to {offset + length:,} of {location}, "
            f"which has {sizes[location]:,}"
        )
