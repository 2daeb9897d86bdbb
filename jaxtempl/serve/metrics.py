"""Prometheus metrics of the server, as GET /metrics returns them. No name or label contains text of a request."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
ROWS = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Metrics of one server, in their own registry.

    Attributes:
        answers: Answers by route and status.
        refused: Suggestion requests that were not computed, by reason.
        failures: Batches that failed.
        reloads: Changes of the model by outcome.
        suggestions: Answered suggestion requests, by whether there was a suggestion.
        events: Stored events by kind.
        exposures: Answered suggestion requests of pairs in experiments, by arm.
        unassigned: Suggestion requests without an advocate or a case, which no experiment counts.
        shadow: Requests for the shadow, by outcome.
    """

    def __init__(self) -> None:
        self._registry = to = CollectorRegistry()
        stages, rows = "Seconds of a suggestion, by stage", "Rows of a batch"
        self._stage = Histogram("jaxtempl_stage_seconds", stages, ["stage"], buckets=SECONDS, registry=to)
        self._batches = Histogram("jaxtempl_batch_rows", rows, buckets=ROWS, registry=to)
        self._model = Gauge("jaxtempl_model_info", "1 for the version that serves", ["version"], registry=to)
        self.answers = Counter("jaxtempl_answers", "Answers by route and status", ["route", "status"], registry=to)
        self.refused = Counter("jaxtempl_refused", "Suggestions not computed, by reason", ["reason"], registry=to)
        self.failures = Counter("jaxtempl_failed_batches", "Batches that failed", registry=to)
        self.reloads = Counter("jaxtempl_reloads", "Changes of the model, by outcome", ["outcome"], registry=to)
        self.suggestions = Counter("jaxtempl_suggestions", "Suggestions answered, by outcome", ["outcome"], registry=to)
        self.events = Counter("jaxtempl_events", "Events stored, by kind", ["event"], registry=to)
        exposed, unassigned = (
            "Suggestions answered in experiments, by arm",
            "Suggestions without an id to assign",
        )
        self.exposures = Counter("jaxtempl_exposures", exposed, ["arm"], registry=to)
        self.unassigned = Counter("jaxtempl_unassigned", unassigned, registry=to)
        self.shadow = Counter("jaxtempl_shadow", "Requests for the shadow, by outcome", ["outcome"], registry=to)
        for outcome in ("computed", "dropped", "failed"):
            self.shadow.labels(outcome)  # shown before the first
        self._stages = {name: self._stage.labels(name) for name in ("read", "wait", "run", "rank", "total")}

    def gauge(self, name: str, description: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is read at each scrape."""
        Gauge(name, description, registry=self._registry).set_function(value)

    def observe(self, stage: str, seconds: float) -> None:
        """Record the duration of a stage: `read` (window), `wait` (queue), `run` (batch), `rank` or `total`."""
        self._stages[stage].observe(seconds)

    def observe_batch(self, rows: int, seconds: float) -> None:
        """Record a batch."""
        self._batches.observe(rows)
        self.observe("run", seconds)

    def set_version(self, version: str) -> None:
        """Set the version that serves from now on."""
        self._model.clear()
        self._model.labels(version).set(1)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
