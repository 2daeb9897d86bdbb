"""Divide what a model computed for a request into what the client sees and what is stored. No HTTP, no JAX."""

from datetime import UTC, datetime
from typing import NamedTuple

from jaxtempl.serve.events.store import StoredSuggestion
from jaxtempl.serve.experiments.assignment import Assignment
from jaxtempl.serve.experiments.definition import HOLDOUT
from jaxtempl.serve.inference.ranking import Suggestion
from jaxtempl.serve.schema import ContextRequest, SuggestAnswer, Suggested, SuggestRequest


class Computed(NamedTuple):
    """Suggestions that a model computed, shown or withheld.

    Attributes:
        best: Suggestions, best first.
        reason: Reason for an empty list; None otherwise.
        assignment: Arm of the pair; None if no experiment applies.
        config_sha256: Sum of the experiments in force.
        version: Version of the model.
        tokens: Tokens of the window that was read.
        dropped: Number of messages older than the window.
    """

    best: list[Suggestion]
    reason: str | None
    assignment: Assignment | None
    config_sha256: str
    version: str
    tokens: int
    dropped: int

    @property
    def is_withheld(self) -> bool:
        """Return whether the pair is held out."""
        return self.assignment is not None and self.assignment.arm == HOLDOUT

    @property
    def outcome(self) -> str:
        """Outcome for the metrics; that of a held-out pair does not depend on what is withheld."""
        return HOLDOUT if self.is_withheld else "none" if self.reason else "some"

    def answer(self, suggestion_id: str, seconds: float) -> SuggestAnswer:
        """Return what the client sees."""
        return SuggestAnswer(
            suggestion_id=suggestion_id,
            suggestions=[] if self.is_withheld else [Suggested(*each) for each in self.best],
            no_suggestion=HOLDOUT if self.is_withheld else self.reason,
            model_version=self.version,
            tokens=self.tokens,
            dropped_messages=self.dropped,
            latency_ms=round(1000 * seconds, 3),
        )

    def record(self, request: ContextRequest | SuggestRequest, answer: SuggestAnswer) -> StoredSuggestion:
        """Return what is stored."""
        withheld = self.best if self.is_withheld else []
        experiment, arm, bucket = self.assignment or (None, None, None)
        return StoredSuggestion(
            suggestion_id=answer.suggestion_id,
            at=datetime.now(UTC),
            case_id=request.case_id,
            advocate_id=request.advocate_id,
            model_version=answer.model_version,
            templates=[each.template for each in answer.suggestions],
            probabilities=[each.probability for each in answer.suggestions],
            tokens=answer.tokens,
            dropped_messages=answer.dropped_messages,
            k=request.k,
            threshold=request.threshold,
            latency_ms=answer.latency_ms,
            reason=answer.no_suggestion,
            experiment=experiment,
            arm=arm,
            bucket=bucket,
            config_sha256=self.config_sha256 if self.assignment else None,
            withheld_templates=[each.template for each in withheld],
            withheld_probabilities=[each.probability for each in withheld],
        )
