"""A TensorRT plan on the GPU of this machine. No JAX.

TensorRT's runtime and CUDA need a GPU, so this has been run against stand-ins of both alone (tests/fake_gpu.py), never
on a GPU.

Dims: B rows, L tokens, S slots.
"""

import bisect
import contextlib
import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from jaxtempl.bundle.bundle import PLAN, Bundle
from jaxtempl.errors import UserError, first_line


@dataclasses.dataclass(frozen=True)
class Machine:
    """What runs an engine.

    Attributes:
        trt: the module `tensorrt`, 10 or 11; of 10, the fused form of the graph needs 10.15.
        cuda: the module `cuda.bindings.runtime`.
        gpu: name of the current GPU.
        compute_capability: of it, like 8.6.
    """

    trt: Any
    cuda: Any
    gpu: str
    compute_capability: str

    @classmethod
    def here(cls) -> "Machine":
        """This machine; raises UserError where a package or the GPU is missing."""
        try:
            return cls.of(importlib.import_module("tensorrt"), importlib.import_module("cuda.bindings.runtime"))
        except ImportError as error:
            raise UserError(
                f"{first_line(error)}; run it on the machine with the GPU, with requirements-tensorrt.txt installed"
            ) from None

    @classmethod
    def of(cls, trt: Any, cuda: Any) -> "Machine":
        """The machine that these modules find; raises UserError without a GPU."""
        properties = check_cuda(cuda, cuda.cudaGetDeviceProperties(check_cuda(cuda, cuda.cudaGetDevice())))
        return cls(trt, cuda, properties.name.decode(), f"{properties.major}.{properties.minor}")

    def facts(self) -> dict[str, str]:
        """What an engine is bound to, as its manifest has it."""
        return {"gpu": self.gpu, "compute_capability": self.compute_capability, "tensorrt": self.trt.__version__}


def check_cuda(cuda: Any, answer: Sequence[Any]) -> Any:
    """The result of a call of CUDA's runtime, which comes after its error; raises UserError for an error."""
    error, *result = answer
    if int(error):
        said = cuda.cudaGetErrorString(error)[1].decode()
        raise UserError(f"CUDA says: {said}; is there an NVIDIA GPU with its driver, and is it free?")
    return result[0] if result else None


def error_logger(trt: Any) -> Any:
    """A logger of TensorRT's that prints nothing; `errors` has what went wrong, a line each."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(" ".join(msg.split()))

    return Logger()


def check_result(log: Any, result: Any, what: str) -> Any:
    """What TensorRT answered; raises UserError with its last error where that is nothing."""
    if not result:
        raise UserError(f"TensorRT cannot {what}: {log.errors[-1] if log.errors else 'it says no more'}")
    return result


def load_engine(opened: Bundle, machine: Machine) -> "Engine":
    """The engine of a bundle.

    Raises:
        UserError: no engine is in it, or it was built for another GPU or TensorRT.
    """
    check_engine(opened, machine)
    return Engine(machine, opened.model.read_bytes(), opened.manifest["engine"]["profiles"])


def check_engine(opened: Bundle, machine: Machine) -> None:
    """Raises UserError unless the bundle's engine was built by this TensorRT for this kind of GPU."""
    built: Any = opened.manifest.get("engine")
    if opened.manifest["model"] != PLAN or not _sound(built):
        raise UserError(f"{opened.folder} has no TensorRT engine; bin/convert tensorrt --bundle=DIR builds one")
    here = machine.facts()
    if any(built.get(key) != value for key, value in here.items()):
        raise UserError(
            f"{opened.folder} was built for {_told(built)}; here is {_told(here)}: build one here with bin/convert "
            "tensorrt"
        )


def _sound(built: Any) -> bool:
    """Whether a manifest's `engine` has the profiles that it is to be run with."""
    profiles = built.get("profiles") if isinstance(built, Mapping) else None
    if not isinstance(profiles, list) or not profiles:
        return False
    return all(isinstance(p, Mapping) and all(isinstance(p.get(k), int) for k in ("length", "batch")) for p in profiles)


def _told(facts: Mapping[str, Any]) -> str:
    return "{} (compute capability {}), TensorRT {}".format(
        *(facts.get(key, "?") for key in ("gpu", "compute_capability", "tensorrt"))
    )


class Engine:
    """A plan, ready to run; one call at a time.

    Attributes:
        batch: most rows that run at once.
        slots: columns of the logits, S.
        lengths: of the profiles, ascending; rows are padded to the next one.
    """

    def __init__(self, machine: Machine, plan: bytes, profiles: Sequence[Mapping[str, Any]]) -> None:
        """Loads the plan.

        Args:
            machine: to run on.
            plan: as TensorRT serialized it.
            profiles: `length` and greatest `batch` of each, by ascending length.

        Raises:
            UserError: TensorRT does not take the plan, or the GPU's memory is short.
        """
        self._cuda, self._log = machine.cuda, error_logger(machine.trt)
        self._runtime = machine.trt.Runtime(self._log)
        self._engine = self._must(self._runtime.deserialize_cuda_engine(plan), "load the plan")
        self._context = self._must(self._engine.create_execution_context(), "run the plan")
        self.lengths = [int(profile["length"]) for profile in profiles]
        self.batch = min(int(profile["batch"]) for profile in profiles)
        self.slots = int(self._engine.get_tensor_shape("logits")[-1])
        self._profile = -1
        with contextlib.ExitStack() as held:
            self._stream = self._call("cudaStreamCreate")
            held.callback(self._call, "cudaStreamDestroy", self._stream)
            widths = {"input_ids": self.lengths[-1], "lengths": 1, "logits": self.slots}
            self._memory = {name: self._allocate(held, 4 * self.batch * width) for name, width in widths.items()}
            self._held = held.pop_all()

    def _allocate(self, held: contextlib.ExitStack, size: int) -> int:
        memory = self._call("cudaMalloc", size)
        held.callback(self._call, "cudaFree", memory)
        return memory

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the GPU's memory back; the engine cannot be used after it."""
        self._held.close()

    def __call__(self, ids: Int32[np.ndarray, "B L"], lengths: Int32[np.ndarray, " B"]) -> Float32[np.ndarray, "B S"]:
        """Logits of rows padded on the right, `batch` of them at a time.

        Raises:
            ValueError: they are longer than the last of the profiles.
        """
        pieces = [slice(start, start + self.batch) for start in range(0, len(ids), self.batch)]
        return np.concatenate([self._run(ids[piece], lengths[piece, None]) for piece in pieces])

    def _run(self, ids: Int32[np.ndarray, "B L"], lengths: Int32[np.ndarray, "B 1"]) -> Float32[np.ndarray, "B S"]:
        rows, length = ids.shape
        index = bisect.bisect_left(self.lengths, length)
        if index == len(self.lengths):
            raise ValueError(f"{length} tokens are more than the {self.lengths[-1]} that the engine was built for")
        padded = np.zeros((rows, self.lengths[index]), np.int32)
        padded[:, :length] = ids
        self._use(index)
        self._send("input_ids", padded)
        self._send("lengths", np.ascontiguousarray(lengths))
        self._context.set_tensor_address("logits", self._memory["logits"])
        self._must(self._context.execute_async_v3(self._stream), "run the plan")
        return self._receive(np.empty((rows, self.slots), np.float32))

    def _use(self, index: int) -> None:
        """Turns to the profile of that place."""
        if index != self._profile:
            self._must(self._context.set_optimization_profile_async(index, self._stream), f"use profile {index}")
            self._call("cudaStreamSynchronize", self._stream)
            self._profile = index

    def _send(self, name: str, array: Int32[np.ndarray, "B _"]) -> None:
        self._must(self._context.set_input_shape(name, array.shape), f"take {name} of {array.shape}")
        self._context.set_tensor_address(name, self._memory[name])
        self._copy(self._memory[name], array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def _receive(self, array: Float32[np.ndarray, "B S"]) -> Float32[np.ndarray, "B S"]:
        self._copy(array.ctypes.data, self._memory["logits"], array.nbytes, "cudaMemcpyDeviceToHost")
        self._call("cudaStreamSynchronize", self._stream)
        return array

    def _copy(self, to: int, source: int, size: int, way: str) -> None:
        self._call("cudaMemcpyAsync", to, source, size, getattr(self._cuda.cudaMemcpyKind, way), self._stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        return check_cuda(self._cuda, getattr(self._cuda, name)(*arguments))

    def _must(self, result: Any, what: str) -> Any:
        return check_result(self._log, result, what)
