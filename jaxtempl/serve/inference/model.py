"""A bundle that is ready to serve: checked, its network loaded, every length of it run once. No JAX.

Dims: B rows, L length, S slots.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from jaxtempl.bundle.bundle import Bundle
from jaxtempl.config.serving import ServeConfig
from jaxtempl.errors import UserError
from jaxtempl.serve.inference import suggester
from jaxtempl.serve.inference.backends import FakeNetwork, Network, OnnxRuntime, onnx_path
from jaxtempl.serve.inference.tensorrt import Machine, load_engine
from jaxtempl.serve.inference.triton import Triton
from jaxtempl.serve.schema import ModelAnswer, TemplateAnswer
from jaxtempl.text.window import bucket_of, pad_rows

SMOOTHING = 0.2  # share of the newest batch in a length's pace


class ServedModel:
    """What answers: immutable but for `pace`, so that two can serve beside each other.

    Attributes:
        version: of the bundle.
        window: messages to ids.
        ranker: logits to templates.
        pace: seconds that a row takes, by length bucket, the newest batches counting most.
    """

    def __init__(self, bundle: Bundle, network: Network, backend: str) -> None:
        """Prepares what can be; `warm` makes it ready.

        Raises:
            UserError: all templates of the bundle are retired, or its window fits no length that it pads to.
        """
        self.version: str = bundle.manifest["version"]
        self.window, self.ranker = bundle.window, suggester.ranker_of(bundle)
        self.pace: dict[int, float] = {}
        self._bundle, self._network, self._backend = bundle, network, backend
        self._buckets = _buckets(bundle)

    def bucket(self, length: int) -> int:
        """The length that a window of so many tokens is padded to."""
        return bucket_of(length, self._buckets)

    def run(self, rows: Sequence[Sequence[int]], bucket: int) -> Float32[np.ndarray, "B S"]:
        """Logits of windows that are padded to `bucket`; takes its time into `pace`.

        Raises:
            UserError: the network failed.
        """
        began = time.perf_counter()
        logits = self._network(*pad_rows(rows, bucket))
        each = (time.perf_counter() - began) / len(rows)
        self.pace[bucket] = each + (1 - SMOOTHING) * (self.pace.get(bucket, each) - each)
        return logits

    def warm(self, most: int) -> "ServedModel":
        """Runs every length with one row and with `most`; raises UserError where a logit is not finite."""
        for bucket in self._buckets:
            for rows in dict.fromkeys((most, 1)):
                self.pace.pop(bucket, None)  # the first run allocates, which no other does
                logits = self.run([range(2, 2 + bucket)] * rows, bucket)
                if not np.isfinite(logits).all():
                    raise UserError(f"{self._bundle.folder} gives logits that are not finite at {bucket} tokens")
        return self

    def close(self) -> None:
        """Gives back what the network holds."""
        self._network.close()

    @property
    def folder(self) -> Path:
        """Where the bundle lies."""
        return self._bundle.folder

    def facts(self) -> ModelAnswer:
        """What GET /v1/model says."""
        manifest = self._bundle.manifest
        return ModelAnswer(
            version=self.version,
            size=str(manifest["run"].get("size") or ""),
            dtype=manifest["dtype"],
            backend=self._backend,
            window=manifest["window"],
            buckets=self._buckets,
            slots=manifest["slots"],
            templates=self.ranker.active,
        )

    def templates(self) -> list[TemplateAnswer]:
        """What GET /v1/templates says."""
        return [TemplateAnswer(each.id, each.text, each.active) for each in self._bundle.templates]


def _buckets(bundle: Bundle) -> list[int]:
    found, window = bundle.manifest["buckets"], bundle.manifest["window"]
    if not found or not all(type(length) is int and length > 0 for length in found) or max(found) < window:
        raise UserError(
            f"{bundle.folder} pads to {found}, which a window of {window} does not fit; convert the run again"
        )
    return sorted(found)


def open_model(folder: Path, asked: ServeConfig) -> ServedModel:
    """A bundle's model, checked, loaded and warm.

    Raises:
        UserError: it is not as its manifest says, or cannot be served as asked.
    """
    bundle = Bundle.open(folder)
    suggester.check_head(bundle)
    return ServedModel(bundle, _network(bundle, asked), asked.backend).warm(asked.max_batch_size)


def _network(bundle: Bundle, asked: ServeConfig) -> Network:
    if asked.backend == "fake":
        return FakeNetwork(bundle.manifest["slots"], asked.fake_ms)
    if asked.backend == "tensorrt":
        return load_engine(bundle, Machine.here())
    if asked.backend == "triton":
        return Triton(asked.triton, asked.triton_model, bundle, asked.timeout_ms / 1000)
    device = "cuda" if asked.backend == "cuda" else "cpu"
    # Without spinning: the threads would take the cores that requests are read with.
    return OnnxRuntime(onnx_path(bundle), asked.threads, spin=False, device=device)
