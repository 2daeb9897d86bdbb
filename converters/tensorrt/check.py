"""A check of TensorRT's support for a graph, without a GPU: is every operator supported, and which are fused?

`tensorrt_rtx` builds for a named compute capability. Its plan holds the program of each profile as text: one step per
kernel, with the nodes of the graph that it runs. The text is undocumented and read as version 1.7 writes it; another
version may differ. A plan of `tensorrt` itself can be inspected on a GPU only.
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
)  # the attention operator of a block, in the fused and the plain form


class PlanKernel(NamedTuple):
    """One step of a plan's program.

    Attributes:
        name: Name of the kernel; `_gemm_mha_v2` and `_gemv_mha_v1` are whole attentions.
        nodes: Nodes of the graph that it runs, wholly or in part.
    """

    name: str
    nodes: tuple[str, ...]


class NodeCounts(NamedTuple):
    """Counts of an operator's nodes by how they run.

    Attributes:
        nodes: All nodes in the graph.
        fused: Nodes that share one kernel with other nodes.
        alone: Nodes that have one kernel to themselves.
        several: Nodes that more than one kernel runs.
        none: Nodes without a kernel: shapes, constants, and nodes that another data layout makes unnecessary.
    """

    nodes: int
    fused: int
    alone: int
    several: int
    none: int


@dataclasses.dataclass(frozen=True)
class SupportReport:
    """The result of a check.

    Attributes:
        version: Version of tensorrt_rtx.
        compute_capability: Compute capability of the build.
        native: Counts of TensorRT's native layers for attention, rotary positions and LayerNorm.
        kernels: Kernels of the program for the longest rows.
        operators: Counts of that program's nodes by operator.
        attention: Number of the graph's attentions that each kernel runs whole.
        unfused: Names of the other attentions.
        bytes: Size of the plan.
        parse_seconds: Seconds of reading the graph.
        build_seconds: Seconds of the build.
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
    """Import tensorrt_rtx under either of its package names; raises UserError if it is missing."""
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


def check(trt: Any, model: Path, config: BuildConfig) -> SupportReport:
    """Build the model and report how its nodes run.

    Args:
        trt: The module tensorrt_rtx.
        model: ONNX file.
        config: Configuration with a compute capability.

    Raises:
        UserError: An operator is not supported, the model cannot be built, or this version's plan cannot be read.
    """
    built = engine.build(trt, model, config)
    programs = list(read_programs(memoryview(built.plan)))
    if len(programs) != len(config.buckets):
        raise UserError(f"the plan of {trt.__name__} {trt.__version__} cannot be read, only that of 1.7; install 1.7")
    kinds = {node.name: node.op_type for node in onnx_check.load_graph(model).graph.node}
    whole, unfused = fused_attentions(kinds, programs)
    return SupportReport(
        version=trt.__version__,
        compute_capability=config.compute_capability,
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
    """Yield the kernels of each profile's program, in order; a kernel generated at run time counts as one."""
    for program in _PROGRAM.finditer(plan):
        text = program[1].decode(errors="replace")
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
    """Count the attentions that each kernel of the last program runs whole; list those that some program splits."""
    attention_nodes = [name for name, kind in kinds.items() if kind in ATTENTION_OPERATORS]
    kernel_of = [
        {node: kernel.name for kernel in program if "mha" in kernel.name for node in kernel.nodes}
        for program in programs
    ]
    unfused = [node for node in attention_nodes if not all(node in whole for whole in kernel_of)]
    return Counter(kernel_of[-1][node] for node in attention_nodes if node not in unfused), unfused


def count_nodes(kinds: Mapping[str, str], kernels: Sequence[PlanKernel]) -> dict[str, NodeCounts]:
    """Count the nodes of each operator by how they run, most nodes first."""
    kernels_of: dict[str, list[PlanKernel]] = {name: [] for name in kinds}
    for kernel in kernels:
        for node in set(kernel.nodes) & kernels_of.keys():
            kernels_of[node].append(kernel)
    usages = {
        kind: Counter(_usage(kernels_of[name]) for name in kinds if kinds[name] == kind) for kind in set(kinds.values())
    }
    counts = {
        kind: NodeCounts(count.total(), *(count[use] for use in NodeCounts._fields[1:]))
        for kind, count in usages.items()
    }
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1].nodes, entry[0])))


def _usage(kernels: Sequence[PlanKernel]) -> str:
    if len(kernels) != 1:
        return "several" if kernels else "none"
    return "fused" if len(set(kernels[0].nodes)) > 1 else "alone"


def format_report(report: SupportReport) -> str:
    """Format the report as text."""
    rows = [f"{kind:22} {' '.join(f'{count:7}' for count in use)}" for kind, use in report.operators.items()]
    native = ", ".join(f"{count} {name}" for name, count in report.native.items())
    return "\n".join(
        [
            f"tensorrt_rtx {report.version} builds the graph for compute capability {report.compute_capability}: "
            f"{report.bytes / 1e6:,.1f} MB in {report.parse_seconds + report.build_seconds:.1f} s",
            f"native layers: {native}",
            format_attention(report),
            f"{len(report.kernels)} kernels for the longest rows; the graph's nodes run as follows:",
            f"{'operator':22} {' '.join(f'{name:>7}' for name in NodeCounts._fields)}",
            *rows,
        ]
    )


def format_attention(report: SupportReport) -> str:
    """Format on one line which attentions are one kernel."""
    whole = sum(report.attention.values())
    by = ", ".join(f"{count} by {name}" for name, count in report.attention.items())
    rest = f"; not fused: {', '.join(report.unfused)}" if report.unfused else ""
    return f"attention in one kernel: {whole} of {whole + len(report.unfused)}{f' ({by})' if by else ''}{rest}"
