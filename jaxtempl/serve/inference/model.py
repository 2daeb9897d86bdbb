"""A bundle that is ready to serve: checked, loaded, and run once at every length. No JAX.

Dims: B rows, L length, S slots.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from jaxtempl.bundle.bundle import Bundle
from jaxtempl.config.serving import ServeConfig
from jaxtempl.errors import UserError
from jaxtempl.serve.inference import suggester
from jaxtempl.serve.inference.backends import FakeNetwork, Network, open_graph
from jaxtempl.serve.inference.ranking import Suggestion
from jaxtempl.serve.inference.tensorrt import Machine, load_engine
from jaxtempl.serve.inference.triton import Triton
from jaxtempl.serve.schema import ModelAnswer, SuggestInput, TemplateAnswer
from jaxtempl.text.window import bucket_of, pad_rows

SMOOTHING = 0.2  # weight of the latest batch in a length's pace


class ServedModel:
    """A model that serves; immutable except for `pace`, so that two can serve at the same time.

    Attributes:
        version: Version of the bundle.
        window: Converts messages to ids.
        ranker: Converts logits to templates.
        pace: Seconds that a row takes, by length bucket: an exponential moving average over batches.
    """

    def __init__(self, bundle: Bundle, network: Network, backend: str) -> None:
        """Prepare the model; call `warm` before it serves.

        Raises:
            UserError: All templates of the bundle are retired, or its window exceeds every bucket.
        """
        self.version: str = bundle.manifest["version"]
        self.window, self.ranker = bundle.window, suggester.ranker_of(bundle)
        self.pace: dict[int, float] = {}
        self._bundle, self._network, self._backend = bundle, network, backend
        self._buckets = _buckets(bundle)

    def bucket(self, length: int) -> int:
        """Return the length that a window of `length` tokens is padded to."""
        return bucket_of(length, self._buckets)

    def run(self, rows: Sequence[Sequence[int]], bucket: int) -> Float32[np.ndarray, "B S"]:
        """Return the logits of windows padded to `bucket`, and update `pace`.

        Raises:
            UserError: The network failed.
        """
        started = time.perf_counter()
        logits = self._network(*pad_rows(rows, bucket))
        each = (time.perf_counter() - started) / len(rows)
        self.pace[bucket] = each + (1 - SMOOTHING) * (self.pace.get(bucket, each) - each)
        return logits

    def rank(self, logits: Float[np.ndarray, " S"], request: SuggestInput) -> tuple[list[Suggestion], str | None]:
        """Return the suggestions for a request, best first, and the reason if there are none."""
        best = self.ranker.best(logits, request.k, request.allowed)
        if not best:
            return [], "none of the allowed templates is known and active"
        if request.threshold is not None and best[0].probability < request.threshold:
            return [], "the best one is below the threshold"
        return best, None

    def warm(self, batch: int) -> "ServedModel":
        """Run every length with one row and with `batch` rows; raise UserError if a logit is not finite."""
        for bucket in self._buckets:
            for rows in dict.fromkeys((batch, 1)):
                self.pace.pop(bucket, None)  # the first run allocates memory, which later ones do not
                logits = self.run([range(2, 2 + bucket)] * rows, bucket)
                if not np.isfinite(logits).all():
                    raise UserError(f"{self._bundle.folder} gives logits that are not finite at {bucket} tokens")
        return self

    def close(self) -> None:
        """Release the network's resources."""
        self._network.close()

    @property
    def folder(self) -> Path:
        """Folder of the bundle."""
        return self._bundle.folder

    def facts(self) -> ModelAnswer:
        """Return the answer of GET /v1/model."""
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
        """Return the answer of GET /v1/templates."""
        return [TemplateAnswer(each.id, each.text, each.active) for each in self._bundle.templates]


def _buckets(bundle: Bundle) -> list[int]:
    buckets, window = bundle.manifest["buckets"], bundle.manifest["window"]
    if not buckets or not all(type(length) is int and length > 0 for length in buckets) or max(buckets) < window:
        raise UserError(
            f"{bundle.folder} has buckets {buckets} below its window of {window} tokens; convert the run again"
        )
    return sorted(buckets)


def open_model(folder: Path, config: ServeConfig) -> ServedModel:
    """Check, load and warm a bundle's model.

    Raises:
        UserError: The bundle does not match its manifest, or cannot be served with this configuration.
    """
    bundle = Bundle.open(folder)
    suggester.check_head(bundle)
    return ServedModel(bundle, _network(bundle, config), config.backend).warm(config.max_batch_size)


def _network(bundle: Bundle, config: ServeConfig) -> Network:
    if config.backend == "fake":
        return FakeNetwork(bundle.manifest["slots"], config.fake_ms)
    if config.backend == "tensorrt":
        return load_engine(bundle, Machine.here())
    if config.backend == "triton":
        return Triton(config.triton, config.triton_model, bundle, config.timeout_ms / 1000)
    device = "cuda" if config.backend == "cuda" else "cpu"
    # Without spinning, as the threads would take the cores that read requests.
    return open_graph(bundle, config.threads, spin=False, device=device)
