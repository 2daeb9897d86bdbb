"""A writer of one ONNX graph: nodes with scoped names, lazily computed weights, shared constants."""

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from jaxtyping import Shaped

from jaxtempl.config.converting import Dtype

NUMPY: dict[Dtype, Any] = {"fp32": np.float32, "fp16": np.float16}
IR_VERSIONS = {20: 9, 23: 10}  # by opset; ONNX Runtime 1.17 reads IR version 9, and refuses newer ones
TYPES: dict[Dtype, ir.DataType] = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16}


class GraphWriter:
    """The nodes and initializers of one graph, in order; a node's name starts with the scope it is written in."""

    def __init__(self) -> None:
        self._tape = ir.tape.Tape()
        self._scopes: list[str] = []
        self._constants: dict[tuple[Any, ...], ir.Value] = {}

    @contextlib.contextmanager
    def scope(self, name: str) -> Generator[None]:
        """Prefix the names of everything that is written inside with `name/`."""
        self._scopes.append(name)
        yield
        self._scopes.pop()

    def op(self, kind: str, *inputs: ir.Value | None, name: str = "", **attributes: Any) -> ir.Value:
        """Write a node of a standard operator with one output; `name` also names the output."""
        node = "/".join([*self._scopes, name or f"{kind}_{len(self._tape.nodes)}"])
        output = ir.Value(name=node if name else f"{node}_out")
        return self._tape.op(kind, inputs, attributes, name=node, output=output)

    def weight(
        self, name: str, shape: tuple[int, ...], dtype: Dtype, make: Callable[[], Shaped[np.ndarray, "..."]]
    ) -> ir.Value:
        """Write an initializer that `make` computes on saving, so that memory holds one copy at a time."""

        def tensor() -> ir.Tensor:
            return ir.Tensor(np.ascontiguousarray(make(), NUMPY[dtype]))

        path = "/".join([*self._scopes, name])
        return self._tape.initializer(ir.LazyTensor(tensor, TYPES[dtype], ir.Shape(shape), name=path))

    def constant(self, value: Any, dtype: Any = np.int64) -> ir.Value:
        """Return a small initializer; equal constants share one."""
        array = np.array(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._tape.initializer(ir.tensor(array, name=f"constant_{len(self._constants)}"))
        return self._constants[key]

    def cast(self, x: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Cast `x` to another type."""
        return self.op("Cast", x, to=int(dtype))

    def annotate(self, x: ir.Value, dtype: Dtype, dims: Sequence[str | int | None]) -> ir.Value:
        """Set the type and shape of `x`: ONNX's shape inference cannot follow slices with computed bounds."""
        x.dtype, x.shape = TYPES[dtype], ir.Shape(dims)
        return x

    def model(self, inputs: list[ir.Value], output: ir.Value, opset: int) -> ir.Model:
        """Return the graph as a model of an opset."""
        from jaxtempl import __version__

        graph = ir.Graph(
            inputs,
            [output],
            nodes=self._tape.nodes,
            initializers=self._tape.initializers,
            opset_imports={"": opset},
            name="jaxtempl",
        )
        return ir.Model(graph, ir_version=IR_VERSIONS[opset], producer_name="jaxtempl", producer_version=__version__)
