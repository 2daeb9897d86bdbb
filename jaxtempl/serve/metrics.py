"""What Prometheus is told by GET /metrics. No text of a request is in a name or a label."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
ROWS = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Counters of one server, in a registry of their own.

    Attributes:
        answers: answers by route and status.
        refused: suggestions that were not computed, by reason.
        failures: batches that failed.
        reloads: by outcome.
        suggestions: that were answered, by whether there was one.
        events: that were kept, by kind.
    """

    def __init__(self) -> None:
        self._registry = to = CollectorRegistry()
        stages, rows = "Seconds of a suggestion, by stage", "Rows of a batch"
        self._stage = Histogram("jaxtempl_stage_seconds", stages, ["stage"], buckets=SECONDS, registry=to)
        self._batches = Histogram("jaxtempl_batch_rows", rows, buckets=ROWS, registry=to)
        self._model = Gauge("jaxtempl_model_info", "1 for the version that serves", ["version"], registry=to)
        self.answers = Counter("jaxtempl_answers", "By route and status", ["route", "status"], registry=to)
        self.refused = Counter("jaxtempl_refused", "Suggestions not computed, by reason", ["reason"], registry=to)
        self.failures = Counter("jaxtempl_failed_batches", "Batches that failed", registry=to)
        self.reloads = Counter("jaxtempl_reloads", "Changes of the model, by outcome", ["outcome"], registry=to)
        self.suggestions = Counter("jaxtempl_suggestions", "Answered, by outcome", ["outcome"], registry=to)
        self.events = Counter("jaxtempl_events", "Kept, by kind", ["event"], registry=to)
        self._stages = {name: self._stage.labels(name) for name in ("read", "wait", "run", "rank", "total")}

    def gauge(self, name: str, told: str, value: Callable[[], float]) -> None:
        """A number that is asked for when it is wanted."""
        Gauge(name, told, registry=self._registry).set_function(value)

    def took(self, stage: str, seconds: float) -> None:
        """A stage of a suggestion ended: `read` (its window), `wait` (queue), `run` (its batch), `rank`, or `total`."""
        self._stages[stage].observe(seconds)

    def batch(self, rows: int, seconds: float) -> None:
        """A batch was computed."""
        self._batches.observe(rows)
        self.took("run", seconds)

    def serves(self, version: str) -> None:
        """Another version serves from now on."""
        self._model.clear()
        self._model.labels(version).set(1)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)
