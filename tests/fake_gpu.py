"""Fakes of the GPU libraries: CUDA's runtime, and TensorRT's runtime and refitter.

tensorrt_rtx builds the plan, for compute capability 8.6. ONNX Runtime executes the same graph; "device memory" is host
memory. The fakes check that a profile is selected before shapes are set, that shapes lie within the profile and that
each tensor has memory. Only weights marked refittable can be refitted, and all of them must be.
"""

import ctypes
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime


class Cuda:
    """A fake of `cuda.bindings.runtime`: every call returns an error code and its result."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815

    def __init__(self, name: str = "NVIDIA A10", major: int = 8, minor: int = 6, error: int = 0) -> None:
        self.properties = SimpleNamespace(name=name.encode(), major=major, minor=minor)
        self.error = error
        self.memory: dict[int, Any] = {}
        self.streams = 0

    def cudaGetDevice(self) -> tuple[int, int | None]:  # noqa: N802
        return (self.error, None) if self.error else (0, 0)

    def cudaGetDeviceProperties(self, device: int) -> tuple[int, Any]:  # noqa: N802
        return 0, self.properties

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, b"no CUDA-capable device is detected"

    def cudaStreamCreate(self) -> tuple[int, int]:  # noqa: N802
        self.streams += 1
        return 0, 7

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:  # noqa: N802
        self.streams -= 1
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        return (0,)

    def cudaMalloc(self, size: int) -> tuple[int, int]:  # noqa: N802
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def cudaFree(self, address: int) -> tuple[int]:  # noqa: N802
        del self.memory[address]
        return (0,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:  # noqa: N802
        device = to if kind == 1 else source
        assert size <= len(self.memory[device])
        ctypes.memmove(to, source, size)
        return (0,)


HEAD = ("head", "head/bias")


class Plan(msgspec.Struct):
    """The content of a fake plan."""

    model: bytes
    profiles: list[dict[str, list[list[int]]]]
    refittable: list[str]

    def encoded(self) -> bytes:
        return msgspec.json.encode(self)


class Trt:
    """A fake of the module `tensorrt`: `real` is tensorrt_rtx, and `worse` scales an error added to the logits."""

    def __init__(self, real: Any, version: str = "11.4.1", worse: float = 0.0, again: bool = True) -> None:
        self.real, self.__version__, self.worse = real, version, worse
        self.network_flags: list[int] = []
        self.parsed = ""
        kept = {"INCLUDE_REFIT": "include"} if again else {}
        self.SerializationFlag = SimpleNamespace(EXCLUDE_WEIGHTS="exclude", **kept)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def Builder(self, log: Any) -> "Builder":  # noqa: N802
        return Builder(self, log)

    def OnnxParser(self, network: Any, log: Any) -> "Parser":  # noqa: N802
        return Parser(self, network, log)

    def Runtime(self, log: Any) -> "Runtime":  # noqa: N802
        return Runtime(self, log)

    def Refitter(self, engine: "Engine", log: Any) -> "Refitter":  # noqa: N802
        return Refitter(engine)

    def Weights(self, array: np.ndarray) -> np.ndarray:  # noqa: N802
        return array


class Builder:
    """A builder that checks the build with tensorrt_rtx and returns the graph as the plan."""

    def __init__(self, trt: Trt, log: Any) -> None:
        self.trt, self.inner = trt, trt.real.Builder(log)

    def create_network(self, flags: int) -> Any:
        self.trt.network_flags.append(flags)
        return self.inner.create_network(flags)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def create_builder_config(self) -> "Config":
        return Config(self.inner.create_builder_config())

    def build_serialized_network(self, network: Any, config: "Config") -> bytes | None:
        flag = self.trt.real.BuilderFlag.REFIT_INDIVIDUAL
        marked = [name for name in HEAD if network.are_weights_marked_refittable(name)]
        assert bool(marked) == config.inner.get_flag(flag)
        config.inner.clear_flag(flag)  # tensorrt_rtx needs a GPU for this flag
        for name in marked:
            network.unmark_weights_refittable(name)
        config.inner.num_compute_capabilities = 1
        config.inner.set_compute_capability(self.trt.real.ComputeCapability.SM86, 0)
        if self.inner.build_serialized_network(network, config.inner) is None:
            return None
        model = onnx.load(self.trt.parsed).SerializeToString()
        names = [network.get_input(i).name for i in range(network.num_inputs)]
        shapes = [{name: [list(dims) for dims in p.get_shape(name)] for name in names} for p in config.profiles]
        return Plan(model, shapes, marked).encoded()


class Config:
    """tensorrt_rtx's builder config, which also records the added profiles."""

    def __init__(self, inner: Any) -> None:
        self.__dict__.update(inner=inner, profiles=[])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.inner, name, value)

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return self.inner.add_optimization_profile(profile)


class Parser:
    """tensorrt_rtx's parser, which also records the parsed file."""

    def __init__(self, trt: Trt, network: Any, log: Any) -> None:
        self.trt, self.inner = trt, trt.real.OnnxParser(network, log)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def parse_from_file(self, path: str) -> bool:
        self.trt.parsed = path
        return self.inner.parse_from_file(path)


class Runtime:
    def __init__(self, trt: Trt, log: Any) -> None:
        self.trt, self.log = trt, log

    def deserialize_cuda_engine(self, plan: bytes) -> "Engine | None":
        try:
            return Engine(self.trt, msgspec.json.decode(plan, type=Plan))
        except msgspec.DecodeError:
            self.log.log(self.trt.real.ILogger.ERROR, "the plan is\nnot one")
            return None


class Engine:
    def __init__(self, trt: Trt, plan: Plan) -> None:
        self.trt, self.plan = trt, plan

    def get_tensor_shape(self, name: str) -> tuple[int, int]:
        (logits,) = onnx.load_from_string(self.plan.model).graph.output
        assert name == logits.name
        return -1, logits.type.tensor_type.shape.dim[1].dim_value

    def create_execution_context(self) -> "Context":
        return Context(self)

    def create_serialization_config(self) -> Any:
        flags: set[str] = set()
        return SimpleNamespace(set_flag=flags.add, clear_flag=flags.discard, flags=flags)

    def serialize_with_config(self, config: Any) -> bytes:
        kept = self.plan.refittable if "include" in config.flags else []
        return Plan(self.plan.model, self.plan.profiles, kept).encoded()


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.session = engine, onnxruntime.InferenceSession(engine.plan.model)
        self.profile: dict[str, list[list[int]]] | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile, self.shapes = self.engine.plan.profiles[index], {}
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None
        least, _, most = self.profile[name]
        self.shapes[name] = shape
        return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        feeds = {name: self._at(name, shape, np.int32).copy() for name, shape in self.shapes.items()}
        (logits,) = self.session.run(["logits"], feeds)
        self._at("logits", logits.shape, np.float32)[:] = logits + self.engine.trt.worse * np.arange(logits.shape[1])
        return True

    def _at(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        count = int(np.prod(shape))
        kind = ctypes.c_int32 if dtype is np.int32 else ctypes.c_float
        return np.frombuffer((kind * count).from_address(self.addresses[name]), dtype).reshape(shape)


class Refitter:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.given = engine, dict[str, np.ndarray]()

    def set_named_weights(self, name: str, weights: np.ndarray) -> bool:
        known = {w.name: w for w in onnx.load_from_string(self.engine.plan.model).graph.initializer}
        alike = list(known[name].dims) == list(weights.shape) and weights.dtype == np.float32
        self.given[name] = weights
        return name in self.engine.plan.refittable and alike

    def get_missing_weights(self) -> list[str]:
        return [name for name in self.engine.plan.refittable if name not in self.given]

    def refit_cuda_engine(self) -> bool:
        model = onnx.load_from_string(self.engine.plan.model)
        for weight in model.graph.initializer:
            if weight.name in self.given:
                weight.raw_data = self.given[weight.name].tobytes()
        self.engine.plan.model = model.SerializeToString()
        return True
