"""What TensorRT makes of a graph, found out without a GPU: is every operator supported, and which of them are fused?

`tensorrt_rtx` builds for a named compute capability, and its plan holds, as text, the program of each profile: a step a
kernel, with the nodes of the graph that it runs. That text is not documented, so another version may write it
otherwise; 1.7 writes what is read here. A plan of `tensorrt` itself can only be asked on a GPU.
"""

import dataclasses
import importlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from converters.tensorrt import engine
from converters.tensorrt.engine import BuildConfig
from jaxtempl.bundle import onnx_check
from jaxtempl.errors import UserError, first_line

_PROGRAM = re.compile(rb"(?m)^main \{\n(.*?)^\}", re.DOTALL)
_STEP = re.compile(r'(?m)^\s+(\w+)=\{ name="?([^\s"]+)')
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
KINDS = ("function", "fully_connected", "runtime_fusion")  # steps that run a kernel
NATIVE_LAYERS = {"attention": "ATTENTION_INPUT", "rotary": "ROTARY_EMBEDDING", "layer norm": "NORMALIZATION"}
ATTENTION_OPERATORS = (
    "Attention",
    "Softmax",
)  # the operator that a block attends with, in the fused and the plain form


class PlanKernel(NamedTuple):
    """One step of a plan's program.

    Attributes:
        name: of what it runs; `_gemm_mha_v2` and `_gemv_mha_v1` are whole attentions.
        nodes: of the graph, those that it runs a part of.
    """

    name: str
    nodes: tuple[str, ...]


class NodeCounts(NamedTuple):
    """What became of an operator's nodes.

    Attributes:
        nodes: in the graph.
        fused: run in one kernel together with other nodes.
        alone: run in one kernel of their own.
        several: run by more than one kernel.
        none: in no kernel: shapes and constants, and what another layout of the data made needless.
    """

    nodes: int
    fused: int
    alone: int
    several: int
    none: int


@dataclasses.dataclass(frozen=True)
class SupportReport:
    """What was found.

    Attributes:
        version: of tensorrt_rtx.
        compute_capability: that was built for.
        native: layers of TensorRT's own for attention, rotary positions and LayerNorm.
        kernels: of the program of the longest rows.
        operators: what became of each operator's nodes there.
        attention: by kernel, how many of the graph's attentions it runs whole.
        unfused: the other attentions.
        bytes: of the plan.
        parse_seconds: for reading the graph.
        build_seconds: for building.
    """

    version: str
    compute_capability: str
    native: dict[str, int]
    kernels: list[PlanKernel]
    operators: dict[str, NodeCounts]
    attention: dict[str, int]
    unfused: list[str]
    bytes: int
    parse_seconds: float
    build_seconds: float


def import_tensorrt_rtx() -> Any:
    """The module tensorrt_rtx, by either of the names that it is packaged under; raises UserError without it."""
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"{name} cannot be loaded: {first_line(error)}") from None
    raise UserError(
        "tensorrt_rtx is missing; pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings (Linux, x86-64)"
    )


def check(trt: Any, model: Path, wanted: BuildConfig) -> SupportReport:
    """Builds the model and looks at what became of it.

    Args:
        trt: the module tensorrt_rtx.
        model: an ONNX file.
        wanted: with a compute capability.

    Raises:
        UserError: an operator is not supported, the model cannot be built, or this version's plan cannot be read.
    """
    built = engine.build(trt, model, wanted)
    programs = list(read_programs(memoryview(built.plan)))
    if len(programs) != len(wanted.buckets):
        raise UserError(f"the plan of {trt.__name__} {trt.__version__} is not written as that of 1.7; install 1.7")
    kinds = {node.name: node.op_type for node in onnx_check.load_graph(model).graph.node}
    whole, unfused = fused_attentions(kinds, programs)
    return SupportReport(
        version=trt.__version__,
        compute_capability=wanted.compute_capability,
        native={name: built.layers[layer] for name, layer in NATIVE_LAYERS.items()},
        kernels=programs[-1],
        operators=count_nodes(kinds, programs[-1]),
        attention=dict(whole),
        unfused=unfused,
        bytes=built.plan.nbytes,
        parse_seconds=built.parse_seconds,
        build_seconds=built.build_seconds,
    )


def read_programs(plan: "memoryview | bytes") -> Iterator[list[PlanKernel]]:
    """The kernels of each profile's program, in order; the inside of a kernel made at run time is none of its own."""
    for found in _PROGRAM.finditer(plan):
        text = found[1].decode(errors="replace")
        if "shape_call=" in text or "function=" in text:
            steps = list(_STEP.finditer(text))
            ends = [step.start() for step in steps[1:]] + [len(text)]
            yield [
                PlanKernel(step[2], tuple(_NODE.findall(text[step.start() : end])))
                for step, end in zip(steps, ends, strict=True)
                if step[1] in KINDS
            ]


def fused_attentions(
    kinds: Mapping[str, str], programs: Sequence[Sequence[PlanKernel]]
) -> tuple[Counter[str], list[str]]:
    """How many attentions each kernel runs whole in the last program, and those that some program runs otherwise."""
    mixes = [name for name, kind in kinds.items() if kind in ATTENTION_OPERATORS]
    by = [
        {node: kernel.name for kernel in program if "mha" in kernel.name for node in kernel.nodes}
        for program in programs
    ]
    unfused = [node for node in mixes if not all(node in whole for whole in by)]
    return Counter(by[-1][node] for node in mixes if node not in unfused), unfused


def count_nodes(kinds: Mapping[str, str], kernels: Sequence[PlanKernel]) -> dict[str, NodeCounts]:
    """What became of the nodes of each operator, most nodes first."""
    by: dict[str, list[PlanKernel]] = {name: [] for name in kinds}
    for kernel in kernels:
        for node in set(kernel.nodes) & by.keys():
            by[node].append(kernel)
    counted = {kind: Counter(_use(by[name]) for name in kinds if kinds[name] == kind) for kind in set(kinds.values())}
    found = {
        kind: NodeCounts(count.total(), *(count[use] for use in NodeCounts._fields[1:]))
        for kind, count in counted.items()
    }
    return dict(sorted(found.items(), key=lambda entry: (-entry[1].nodes, entry[0])))


def _use(kernels: Sequence[PlanKernel]) -> str:
    if len(kernels) != 1:
        return "several" if kernels else "none"
    return "fused" if len(set(kernels[0].nodes)) > 1 else "alone"


def format_report(report: SupportReport) -> str:
    """The report as text."""
    rows = [f"{kind:22} {' '.join(f'{count:7}' for count in use)}" for kind, use in report.operators.items()]
    native = ", ".join(f"{count} {name}" for name, count in report.native.items())
    return "\n".join(
        [
            f"tensorrt_rtx {report.version} builds it for compute capability {report.compute_capability}: "
            f"{report.bytes / 1e6:,.1f} MB in {report.parse_seconds + report.build_seconds:.1f} s",
            f"native layers: {native}",
            format_attention(report),
            f"{len(report.kernels)} kernels for the longest rows; what became of the graph's nodes:",
            f"{'operator':22} {' '.join(f'{name:>7}' for name in NodeCounts._fields)}",
            *rows,
        ]
    )


def format_attention(report: SupportReport) -> str:
    """Which attentions are one kernel, on one line."""
    whole = sum(report.attention.values())
    by = ", ".join(f"{count} by {name}" for name, count in report.attention.items())
    rest = f"; not fused: {', '.join(report.unfused)}" if report.unfused else ""
    return f"attention in one kernel: {whole} of {whole + len(report.unfused)}{f' ({by})' if by else ''}{rest}"
