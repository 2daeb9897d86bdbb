"""An ONNX file -> a TensorRT plan, by either of NVIDIA's modules.

`tensorrt` 10 and 11 build for the local GPU. `tensorrt_rtx` has the same classes and also builds without a GPU, for a
named compute capability. Production and tests therefore share this code.
"""

import contextlib
import dataclasses
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jaxtempl import files
from jaxtempl.errors import UsageError, UserError
from jaxtempl.serve.inference import tensorrt

BAR = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"


@dataclasses.dataclass(frozen=True)
class BuildConfig:
    """The configuration of a build.

    Attributes:
        buckets: Lengths in tokens, ascending; each gets an optimization profile for rows of exactly that length.
        batch: Maximum rows of a batch; kernels are tuned for one row.
        refittable: Names of weights that may be refitted; TensorRT lays out all others for speed.
        timing_cache: File of earlier kernel timings, read and updated; None for no cache.
        compute_capability: Compute capability to build for instead of the local GPU's; tensorrt_rtx only.
    """

    buckets: Sequence[int]
    batch: int
    refittable: Sequence[str] = ()
    timing_cache: Path | None = None
    compute_capability: str = ""

    def profiles(self) -> list[dict[str, int]]:
        """Return the profiles as the manifest lists them."""
        return [{"length": length, "batch": self.batch} for length in self.buckets]


@dataclasses.dataclass(frozen=True)
class BuiltPlan:
    """A plan and its build.

    Attributes:
        plan: Bytes of the plan, as a buffer.
        layers: Number of layers of each type that the parser created.
        parse_seconds: Seconds of reading the graph.
        build_seconds: Seconds of the build after it.
    """

    plan: Any
    layers: Counter[str]
    parse_seconds: float
    build_seconds: float


def build(trt: Any, model: Path, config: BuildConfig) -> BuiltPlan:
    """Build the plan of a model.

    Args:
        trt: The module tensorrt or tensorrt_rtx.
        model: ONNX file, with its external data next to it.
        config: Configuration of the build.

    Raises:
        UserError: An operator is not supported, or no plan can be built.
        UsageError: The module does not build for that compute capability.
    """
    log = tensorrt.error_logger(trt)
    builder = trt.Builder(log)
    # version 10 needs the flag; version 11 always types strongly
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    start = time.perf_counter()
    parser = trt.OnnxParser(network, log)  # holds the weights until the plan is built
    _parse(parser, log, model)
    parsed = time.perf_counter()
    builder_config = _builder_config(trt, builder, network, config)
    timing = _timing_cache(builder_config, config.timing_cache) if config.timing_cache else None  # kept alive
    plan = _plan(trt, builder, network, builder_config, log, model)
    if timing and config.timing_cache:
        with files.atomic_file(config.timing_cache) as temporary:
            temporary.write_bytes(builder_config.get_timing_cache().serialize())
    layers = Counter(network.get_layer(i).type.name for i in range(network.num_layers))
    return BuiltPlan(plan, layers, parsed - start, time.perf_counter() - parsed)


def _parse(parser: Any, log: Any, model: Path) -> None:
    if parser.parse_from_file(str(model)):
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    if not errors:
        raise UserError(f"TensorRT cannot read {model}: {_reason(log.errors)}")
    nodes = [f"{error.node_operator()} ({error.node_name() or 'unnamed'})" for error in errors]
    reasons = [" ".join(error.desc().split()) for error in errors if error.desc() != "false"]
    raise UserError(f"TensorRT does not support {': '.join([', '.join(nodes[:5]), *reasons[:1]])} in {model}")


def _builder_config(trt: Any, builder: Any, network: Any, config: BuildConfig) -> Any:
    builder_config = builder.create_builder_config()
    builder_config.clear_flag(trt.BuilderFlag.TF32)  # the head is float32 on purpose
    for length in config.buckets:
        builder_config.add_optimization_profile(_profile(builder, network, length, config.batch))
    mark_refittable(trt, network, builder_config, config.refittable)
    if config.compute_capability:
        _set_compute_capability(trt, builder_config, config.compute_capability)
    return builder_config


def _timing_cache(builder_config: Any, path: Path) -> Any:
    """Give earlier timings to the build, which adds to them."""
    timing = builder_config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if timing is None or not builder_config.set_timing_cache(timing, False):
        raise UserError(f"{path} is no timing cache of this GPU and TensorRT; name another file")
    return timing


def _profile(builder: Any, network: Any, length: int, batch: int) -> Any:
    """Return the profile of one length, to which clients pad rows, and of 1 to `batch` rows."""
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        width = length if tensor.shape[1] < 0 else tensor.shape[1]
        profile.set_shape(tensor.name, (1, width), (1, width), (batch, width))
    return profile


def mark_refittable(trt: Any, network: Any, builder_config: Any, names: Sequence[str]) -> None:
    """Mark these weights, and no others, as refittable; raises UserError for a missing one."""
    if not names:
        return
    builder_config.set_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
    for name in names:
        if not network.mark_weights_refittable(name):
            raise UserError(f"TensorRT finds no refittable weights {name} in the graph; convert the run again")


def _set_compute_capability(trt: Any, builder_config: Any, capability: str) -> None:
    """Build for another GPU than the local one, and record in the plan which kernel runs which node."""
    members = trt.ComputeCapability.__members__
    if (name := f"SM{capability.replace('.', '')}") not in members:
        allowed = ", ".join(f"{n[2:-1]}.{n[-1]}" for n in members if n.startswith("SM"))
        raise UsageError(f"--compute_capability={capability} is unknown to {trt.__name__}; allowed: {allowed}")
    builder_config.num_compute_capabilities = 1
    builder_config.set_compute_capability(members[name], 0)
    builder_config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED


def _plan(trt: Any, builder: Any, network: Any, builder_config: Any, log: Any, model: Path) -> Any:
    with tqdm(total=1.0, desc="build", disable=not sys.stderr.isatty(), bar_format=BAR) as bar, _interrupts() as stop:
        builder_config.progress_monitor = _monitor(trt, lambda share: bar.update(max(share - bar.n, 0.0)), stop)
        plan = builder.build_serialized_network(network, builder_config)
    if stop.is_set():
        raise KeyboardInterrupt
    if plan is None:
        raise UserError(f"TensorRT cannot build {model}: {_reason(log.errors)}")
    return plan


def _reason(errors: Sequence[str]) -> str:
    """Return the first error without its web address, and the remedy where it is known."""
    error = errors[0].partition(" (See ")[0] if errors else "it gives no reason"
    needs_16_bits = "dedicated kernel" in error  # kernels of fused attention exist for 16 bits only
    return error + (" Convert the run with --dtype=fp16 or --form=plain" if needs_16_bits else "")


@contextlib.contextmanager
def _interrupts() -> Generator[threading.Event]:
    """Turn Control-C into an event, because no exception may pass through TensorRT."""
    stop = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _monitor(trt: Any, show: Callable[[float], object], stop: threading.Event) -> Any:
    """Return a monitor that shows the completed share of the build and cancels it once `stop` is set."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases: dict[str, list[int]] = {}  # steps and completed steps of each, outermost first

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = [num_steps, 0]

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._phases:
                self._phases[phase_name][1] = step + 1
                show(completed_share(list(self._phases.values())))
            return not stop.is_set()

    return Monitor()


def completed_share(phases: Sequence[Sequence[int]]) -> float:
    """Return the completed share of nested phases.

    Args:
        phases: Steps and completed steps of each phase, outermost first; a phase is one step of the phase before it.
    """
    step_share, share = 1.0, 0.0
    for steps, completed in phases:
        step_share /= max(steps, 1)
        share += step_share * completed
    return min(share, 1.0)
