"""Run a TensorRT plan on the GPU of this machine. No JAX.

TensorRT's runtime and CUDA need a GPU. This module has only been run against stand-ins of both (tests/fake_gpu.py),
never on a GPU.

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
    """TensorRT, CUDA and the GPU that run an engine.

    Attributes:
        trt: Module `tensorrt`, version 10 or 11; the fused form of the graph needs 10.15 or later.
        cuda: Module `cuda.bindings.runtime`.
        gpu: Name of the current GPU.
        compute_capability: Compute capability of the GPU, like 8.6.
    """

    trt: Any
    cuda: Any
    gpu: str
    compute_capability: str

    @classmethod
    def here(cls) -> "Machine":
        """Return this machine; raise UserError if a package or the GPU is missing."""
        try:
            return cls.of(importlib.import_module("tensorrt"), importlib.import_module("cuda.bindings.runtime"))
        except ImportError as error:
            raise UserError(
                f"{first_line(error)}; run it on the machine with the GPU, with requirements-tensorrt.txt installed"
            ) from None

    @classmethod
    def of(cls, trt: Any, cuda: Any) -> "Machine":
        """Return the machine that these modules find; raise UserError without a GPU."""
        properties = check_cuda(cuda, cuda.cudaGetDeviceProperties(check_cuda(cuda, cuda.cudaGetDevice())))
        return cls(trt, cuda, properties.name.decode(), f"{properties.major}.{properties.minor}")

    def facts(self) -> dict[str, str]:
        """Return the properties that an engine is bound to, as in its manifest."""
        return {"gpu": self.gpu, "compute_capability": self.compute_capability, "tensorrt": self.trt.__version__}


def check_cuda(cuda: Any, answer: Sequence[Any]) -> Any:
    """Return the result of a CUDA runtime call, which follows its status; raise UserError for an error status."""
    error, *result = answer
    if int(error):
        message = cuda.cudaGetErrorString(error)[1].decode()
        raise UserError(f"CUDA failed: {message}; check the NVIDIA GPU, its driver and its memory")
    return result[0] if result else None


def error_logger(trt: Any) -> Any:
    """Return a TensorRT logger that prints nothing, and collects errors in `errors`, one line each."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(" ".join(msg.split()))

    return Logger()


def check_result(log: Any, result: Any, action: str) -> Any:
    """Return TensorRT's result; raise UserError with its last error if there is none."""
    if not result:
        raise UserError(f"TensorRT cannot {action}: {log.errors[-1] if log.errors else 'no further message'}")
    return result


def load_engine(bundle: Bundle, machine: Machine) -> "Engine":
    """Load the engine of a bundle.

    Raises:
        UserError: The bundle has no engine, or its engine was built for another GPU or TensorRT.
    """
    check_engine(bundle, machine)
    return Engine(machine, bundle.model.read_bytes(), bundle.manifest["engine"]["profiles"])


def check_engine(bundle: Bundle, machine: Machine) -> None:
    """Raise UserError unless the bundle's engine was built by this TensorRT for this kind of GPU."""
    built: Any = bundle.manifest.get("engine")
    if bundle.manifest["model"] != PLAN or not _has_profiles(built):
        raise UserError(f"{bundle.folder} has no TensorRT engine; bin/convert tensorrt --bundle=DIR builds one")
    here = machine.facts()
    if any(built.get(key) != value for key, value in here.items()):
        raise UserError(
            f"{bundle.folder} was built for {_describe(built)}; this is {_describe(here)}; build an engine here with "
            "bin/convert tensorrt"
        )


def _has_profiles(built: Any) -> bool:
    """Return whether a manifest's `engine` has valid profiles."""
    profiles = built.get("profiles") if isinstance(built, Mapping) else None
    if not isinstance(profiles, list) or not profiles:
        return False
    return all(isinstance(p, Mapping) and all(isinstance(p.get(k), int) for k in ("length", "batch")) for p in profiles)


def _describe(facts: Mapping[str, Any]) -> str:
    return "{} (compute capability {}), TensorRT {}".format(
        *(facts.get(key, "?") for key in ("gpu", "compute_capability", "tensorrt"))
    )


class Engine:
    """A loaded plan; one call at a time.

    Attributes:
        batch: Maximum rows of a batch.
        slots: Columns of the logits, S.
        lengths: Lengths of the profiles, ascending; rows are padded to the next one.
    """

    def __init__(self, machine: Machine, plan: bytes, profiles: Sequence[Mapping[str, Any]]) -> None:
        """Load the plan.

        Args:
            machine: Machine to run on.
            plan: Plan as serialized by TensorRT.
            profiles: `length` and maximum `batch` of each profile, by ascending length.

        Raises:
            UserError: TensorRT rejects the plan, or the GPU has too little memory.
        """
        self._cuda, self._log = machine.cuda, error_logger(machine.trt)
        self._runtime = machine.trt.Runtime(self._log)
        self._engine = self._check(self._runtime.deserialize_cuda_engine(plan), "load the plan")
        self._context = self._check(self._engine.create_execution_context(), "run the plan")
        self.lengths = [int(profile["length"]) for profile in profiles]
        self.batch = min(int(profile["batch"]) for profile in profiles)
        self.slots = int(self._engine.get_tensor_shape("logits")[-1])
        self._profile = -1
        with contextlib.ExitStack() as stack:
            self._stream = self._call("cudaStreamCreate")
            stack.callback(self._call, "cudaStreamDestroy", self._stream)
            widths = {"input_ids": self.lengths[-1], "lengths": 1, "logits": self.slots}
            self._memory = {name: self._allocate(stack, 4 * self.batch * width) for name, width in widths.items()}
            self._resources = stack.pop_all()

    def _allocate(self, stack: contextlib.ExitStack, size: int) -> int:
        memory = self._call("cudaMalloc", size)
        stack.callback(self._call, "cudaFree", memory)
        return memory

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the GPU's memory; the engine cannot be used afterwards."""
        self._resources.close()

    def __call__(self, ids: Int32[np.ndarray, "B L"], lengths: Int32[np.ndarray, " B"]) -> Float32[np.ndarray, "B S"]:
        """Return the logits of rows padded on the right, computed in microbatches of `batch` rows.

        Raises:
            ValueError: The rows are longer than the last profile.
        """
        microbatches = [slice(start, start + self.batch) for start in range(0, len(ids), self.batch)]
        return np.concatenate([self._run(ids[rows], lengths[rows, None]) for rows in microbatches])

    def _run(self, ids: Int32[np.ndarray, "B L"], lengths: Int32[np.ndarray, "B 1"]) -> Float32[np.ndarray, "B S"]:
        rows, length = ids.shape
        index = bisect.bisect_left(self.lengths, length)
        if index == len(self.lengths):
            raise ValueError(f"{length} tokens exceed the {self.lengths[-1]} that the engine was built for")
        padded = np.zeros((rows, self.lengths[index]), np.int32)
        padded[:, :length] = ids
        self._use(index)
        self._send("input_ids", padded)
        self._send("lengths", np.ascontiguousarray(lengths))
        self._context.set_tensor_address("logits", self._memory["logits"])
        self._check(self._context.execute_async_v3(self._stream), "run the plan")
        return self._receive(np.empty((rows, self.slots), np.float32))

    def _use(self, index: int) -> None:
        """Select the profile at `index`."""
        if index != self._profile:
            self._check(self._context.set_optimization_profile_async(index, self._stream), f"use profile {index}")
            self._call("cudaStreamSynchronize", self._stream)
            self._profile = index

    def _send(self, name: str, array: Int32[np.ndarray, "B _"]) -> None:
        self._check(self._context.set_input_shape(name, array.shape), f"take {name} of {array.shape}")
        self._context.set_tensor_address(name, self._memory[name])
        self._copy(self._memory[name], array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def _receive(self, array: Float32[np.ndarray, "B S"]) -> Float32[np.ndarray, "B S"]:
        self._copy(array.ctypes.data, self._memory["logits"], array.nbytes, "cudaMemcpyDeviceToHost")
        self._call("cudaStreamSynchronize", self._stream)
        return array

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        self._call("cudaMemcpyAsync", target, source, size, getattr(self._cuda.cudaMemcpyKind, kind), self._stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        return check_cuda(self._cuda, getattr(self._cuda, name)(*arguments))

    def _check(self, result: Any, action: str) -> Any:
        return check_result(self._log, result, action)
