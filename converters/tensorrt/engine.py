"""An ONNX file -> a TensorRT plan, with whichever of NVIDIA's modules is given.

`tensorrt` 10 and 11 build for the GPU that they find; `tensorrt_rtx` has the same classes and also builds, with no GPU,
for a compute capability that is named. So the same lines build for production and in the tests.
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
    """What to build.

    Attributes:
        buckets: lengths in tokens, ascending; a profile each, for rows of just that length.
        batch: most rows at a time; one row is what is tuned for.
        refittable: weights that may be changed in the plan; all others are laid out for speed.
        timing_cache: file of what was timed before, read and written; none if None.
        compute_capability: build for this one, not for the GPU here; tensorrt_rtx alone can.
    """

    buckets: Sequence[int]
    batch: int
    refittable: Sequence[str] = ()
    timing_cache: Path | None = None
    compute_capability: str = ""

    def profiles(self) -> list[dict[str, int]]:
        """As the manifest has them."""
        return [{"length": length, "batch": self.batch} for length in self.buckets]


@dataclasses.dataclass(frozen=True)
class BuiltPlan:
    """A plan.

    Attributes:
        plan: its bytes, as a buffer.
        layers: how many layers of each type the parser made of the graph.
        parse_seconds: for reading the graph.
        build_seconds: for the rest.
    """

    plan: Any
    layers: Counter[str]
    parse_seconds: float
    build_seconds: float


def build(trt: Any, model: Path, wanted: BuildConfig) -> BuiltPlan:
    """Builds the plan of a model.

    Args:
        trt: the module tensorrt or tensorrt_rtx.
        model: an ONNX file, its external data beside it.
        wanted: for what.

    Raises:
        UserError: an operator is not supported, or no plan could be built.
        UsageError: the module does not build for that compute capability.
    """
    log = tensorrt.error_logger(trt)
    builder = trt.Builder(log)
    # 10 needs the flag; networks of 11 are strongly typed with or without it
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    start = time.perf_counter()
    parser = trt.OnnxParser(network, log)  # holds the weights until the plan is built
    _parse(parser, log, model)
    parsed = time.perf_counter()
    config = _config(trt, builder, network, wanted)
    timing = _timing(config, wanted.timing_cache) if wanted.timing_cache else None  # held until the plan is built
    plan = _plan(trt, builder, network, config, log, model)
    if timing and wanted.timing_cache:
        with files.atomic_file(wanted.timing_cache) as temporary:
            temporary.write_bytes(config.get_timing_cache().serialize())
    layers = Counter(network.get_layer(i).type.name for i in range(network.num_layers))
    return BuiltPlan(plan, layers, parsed - start, time.perf_counter() - parsed)


def _parse(parser: Any, log: Any, model: Path) -> None:
    if parser.parse_from_file(str(model)):
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    if not errors:
        raise UserError(f"TensorRT cannot read {model}: {_reason(log.errors)}")
    told = [f"{error.node_operator()} ({error.node_name() or 'unnamed'})" for error in errors]
    why = [" ".join(error.desc().split()) for error in errors if error.desc() != "false"]
    raise UserError(f"TensorRT does not support {': '.join([', '.join(told[:5]), *why[:1]])} in {model}")


def _config(trt: Any, builder: Any, network: Any, wanted: BuildConfig) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # what is float32 in the graph, the head, is meant to be
    for length in wanted.buckets:
        config.add_optimization_profile(_profile(builder, network, length, wanted.batch))
    mark_refittable(trt, network, config, wanted.refittable)
    if wanted.compute_capability:
        _aim(trt, config, wanted.compute_capability)
    return config


def _timing(config: Any, path: Path) -> Any:
    """What was timed before, given to the build, which adds to it."""
    timing = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if timing is None or not config.set_timing_cache(timing, False):
        raise UserError(f"{path} is no timing cache of this GPU and TensorRT; name another file")
    return timing


def _profile(builder: Any, network: Any, length: int, batch: int) -> Any:
    """One length, for rows are padded to it before they are sent, and 1 to `batch` rows."""
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        given = network.get_input(i)
        width = length if given.shape[1] < 0 else given.shape[1]
        profile.set_shape(given.name, (1, width), (1, width), (batch, width))
    return profile


def mark_refittable(trt: Any, network: Any, config: Any, names: Sequence[str]) -> None:
    """Lets the weights of these names be refitted, and no others; raises UserError for one that is not there."""
    if not names:
        return
    config.set_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
    for name in names:
        if not network.mark_weights_refittable(name):
            raise UserError(
                f"TensorRT finds no weights {name} in the graph that can be refitted; convert the run again"
            )


def _aim(trt: Any, config: Any, capability: str) -> None:
    """Builds for a GPU that is not here, and keeps in the plan which kernel runs what."""
    known = trt.ComputeCapability.__members__
    if (name := f"SM{capability.replace('.', '')}") not in known:
        allowed = ", ".join(f"{n[2:-1]}.{n[-1]}" for n in known if n.startswith("SM"))
        raise UsageError(f"--compute_capability={capability} is unknown to {trt.__name__}; allowed: {allowed}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(known[name], 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED


def _plan(trt: Any, builder: Any, network: Any, config: Any, log: Any, model: Path) -> Any:
    with tqdm(total=1.0, desc="build", disable=not sys.stderr.isatty(), bar_format=BAR) as bar, _hearing() as asked:
        config.progress_monitor = _monitor(trt, lambda share: bar.update(max(share - bar.n, 0.0)), asked)
        plan = builder.build_serialized_network(network, config)
    if asked.is_set():
        raise KeyboardInterrupt
    if plan is None:
        raise UserError(f"TensorRT cannot build {model}: {_reason(log.errors)}")
    return plan


def _reason(errors: Sequence[str]) -> str:
    """What went wrong first, without the web address, and what to do where that is known."""
    said = errors[0].partition(" (See ")[0] if errors else "it says no more"
    alike = "dedicated kernel" in said  # fused attention is made for 16 bits
    return said + (" Convert the run with --dtype=fp16, or with plain operators" if alike else "")


@contextlib.contextmanager
def _hearing() -> Generator[threading.Event]:
    """Control-C sets the event, for no exception may pass through TensorRT."""
    asked = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _monitor(trt: Any, show: Callable[[float], object], asked: threading.Event) -> Any:
    """Shows the share of the build that is done, and stops it when asked to."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases: dict[str, list[int]] = {}  # steps of each and those done, outermost first

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = [num_steps, 0]

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._phases:
                self._phases[phase_name][1] = step + 1
                show(completed_share(list(self._phases.values())))
            return not asked.is_set()

    return Monitor()


def completed_share(phases: Sequence[Sequence[int]]) -> float:
    """How much is done where each of `phases`, steps and those done, is one step of that before it."""
    whole, done = 1.0, 0.0
    for steps, finished in phases:
        whole /= max(steps, 1)
        done += whole * finished
    return min(done, 1.0)
