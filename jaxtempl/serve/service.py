"""Suggest, store events, and change the model, independent of the protocol. No HTTP, no JAX."""

import asyncio
import gc
import logging
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from jaxtempl.config.serving import ServeConfig
from jaxtempl.errors import UserError
from jaxtempl.serve import logs
from jaxtempl.serve.batcher import Batcher, QueueEntry, RefusedError
from jaxtempl.serve.events.store import Store, StoredSuggestion
from jaxtempl.serve.inference.model import ServedModel, open_model
from jaxtempl.serve.inference.ranking import Suggestion as Ranked
from jaxtempl.serve.metrics import Metrics
from jaxtempl.serve.schema import (
    ContextRequest,
    Event,
    FieldError,
    SuggestAnswer,
    Suggested,
    SuggestInput,
    SuggestRequest,
)
from jaxtempl.text.cases import Message

INLINE = 8_000  # characters that are tokenized on the event loop, in about 3 ms; longer contexts use a thread


class NotReadyError(RefusedError):
    """No model is loaded yet."""

    reason = "not ready"

    def __init__(self) -> None:
        super().__init__("the model is not loaded yet; try again later")


class BusyError(Exception):
    """Another change of the model is in progress."""

    def __init__(self) -> None:
        super().__init__("another change of the model is in progress; try again when it is done")


class ServedSuggestions(NamedTuple):
    """The suggestions for one context.

    Attributes:
        suggestions: Suggestions, best first.
        reason: Reason for an empty list; None otherwise.
        version: Version of the model that answered.
        tokens: Tokens of the window that was read.
        dropped: Number of messages older than the window.
    """

    suggestions: list[Ranked]
    reason: str | None
    version: str
    tokens: int
    dropped: int


class Service:
    """One server's models, queue and store; created and used on one event loop.

    Attributes:
        model: The model that serves; None until the first one is warm.
        metrics: Metrics of the server.
    """

    def __init__(self, config: ServeConfig, store: Store, metrics: Metrics) -> None:
        self.model: ServedModel | None = None
        self.metrics = metrics
        self._config, self._store = config, store
        self._previous: ServedModel | None = None
        self._changing = asyncio.Lock()
        self._timeout = config.timeout_ms / 1000
        self._batcher = Batcher(config.max_batch_size, config.queue, self._timeout, metrics)
        metrics.gauge("jaxtempl_queue_depth", "Requests in the queue", lambda: self._batcher.waiting)
        metrics.gauge("jaxtempl_store_waiting", "Records that wait to be written", lambda: store.waiting)
        metrics.gauge("jaxtempl_store_dropped", "Suggestions that could not be stored", lambda: store.dropped)

    async def suggest(self, request: SuggestRequest) -> SuggestAnswer:
        """Answer a request, and store the answer.

        Raises:
            FieldError: No message has text.
            RefusedError: Nothing was computed; the error's type says why.
        """
        started = time.perf_counter()
        result = await self.find(request)
        answer = SuggestAnswer(
            suggestion_id=secrets.token_hex(16),
            suggestions=[Suggested(*each) for each in result.suggestions],
            no_suggestion=result.reason,
            model_version=result.version,
            tokens=result.tokens,
            dropped_messages=result.dropped,
            latency_ms=round(1000 * (time.perf_counter() - started), 3),
        )
        self._store.add(_record(request, answer))
        return answer

    async def find(self, request: ContextRequest | SuggestRequest) -> ServedSuggestions:
        """Return the suggestions for a context, without storing them; raises as `suggest`."""
        try:
            return await self._find(request)
        except RefusedError as error:
            self.metrics.refused.labels(error.reason).inc()
            raise

    async def commit_event(self, event: Event) -> None:
        """Store an event; raises as `Store.commit_event`."""
        await self._store.commit_event(event)
        self.metrics.events.labels(event.event).inc()

    async def load(self, folder: Path) -> str:
        """Verify and warm a bundle next to the one that serves, then serve it from the next batch on.

        Returns:
            Its version.

        Raises:
            BusyError: Another change is in progress.
            UserError: The bundle cannot be served; the current model still serves.
        """
        if self._changing.locked():
            raise BusyError
        async with self._changing:
            try:
                new = await asyncio.to_thread(open_model, folder, self._config)
            except UserError as error:
                self.metrics.reloads.labels("refused").inc()
                logs.log_event("bundle refused", logging.WARNING, why=str(error))
                raise
            retired, self._previous = self._previous, self.model
            self._switch(new, "reloaded" if self._previous else "loaded")
            if retired:
                await self._close(retired)
                del retired
                gc.collect()  # frees the network's memory now, not at a later collection
            return new.version

    async def rollback(self) -> str:
        """Serve the previous model, which is still warm; a second rollback returns to the current one.

        Returns:
            Its version.

        Raises:
            BusyError: Another change is in progress.
            UserError: There is no previous model.
        """
        if self._changing.locked():
            raise BusyError
        if self._previous is None or self.model is None:
            raise UserError("no other model has served since the start; POST /admin/reload loads one")
        self._previous, before = self.model, self._previous
        self._switch(before, "rolled back")
        return before.version

    async def close(self) -> None:
        """Stop the queue, write the pending records, and release the models."""
        await self._batcher.close()
        await asyncio.to_thread(self._store.close)
        for model in (self.model, self._previous):
            if model:
                model.close()

    async def _find(self, request: ContextRequest | SuggestRequest) -> ServedSuggestions:
        started = time.perf_counter()
        model = self.model
        if model is None:
            raise NotReadyError
        messages = [Message(message.role, message.text) for message in request.messages if message.text.strip()]
        if not messages:
            raise FieldError("messages", "no message has text")
        with self._batcher.enqueue(request.case_id) as entry:
            ids, dropped = await _read_window(model, messages, entry)
            self.metrics.observe("read", time.perf_counter() - started)
            logits = await self._batcher.logits(entry, model, ids)
        computed = time.perf_counter()
        suggestions, reason = _apply_threshold(model.ranker.best(logits, request.k, request.allowed), request)
        self.metrics.observe("rank", time.perf_counter() - computed)
        self.metrics.observe("total", time.perf_counter() - started)
        self.metrics.suggestions.labels("none" if reason else "some").inc()
        return ServedSuggestions(suggestions, reason, model.version, len(ids), dropped)

    def _switch(self, model: ServedModel, outcome: str) -> None:
        self.model = model
        self.metrics.set_version(model.version)
        self.metrics.reloads.labels(outcome).inc()
        logs.log_event(f"model {outcome}", version=model.version, bundle=str(model.folder))
        late = {str(length): round(1000 * pace) for length, pace in model.pace.items() if pace > self._timeout}
        if late:
            logs.log_event("windows of these lengths take longer than --timeout_ms", logging.WARNING, milliseconds=late)

    async def _close(self, model: ServedModel) -> None:
        """Close a model that is out of use, after its last request was computed."""
        while self._batcher.uses(model):
            await asyncio.sleep(0.01)
        await asyncio.to_thread(model.close)


async def _read_window(model: ServedModel, messages: Sequence[Message], entry: QueueEntry) -> tuple[list[int], int]:
    """Read the window, a long one in a thread; raise the entry's error as soon as it is refused."""
    if sum(len(message.text) for message in messages) <= INLINE:
        return model.window.encode(messages)
    reading = asyncio.ensure_future(asyncio.to_thread(model.window.encode, messages))
    await asyncio.wait((reading, entry.answer), return_when=asyncio.FIRST_COMPLETED)
    if not reading.done():
        await entry.answer
    return reading.result()


def _apply_threshold(best: list[Ranked], request: SuggestInput) -> tuple[list[Ranked], str | None]:
    """Return the suggestions, and the reason if there are none."""
    if not best:
        return [], "none of the allowed templates is known and active"
    if request.threshold is not None and best[0].probability < request.threshold:
        return [], "the best one is below the threshold"
    return best, None


def _record(request: SuggestRequest, answer: SuggestAnswer) -> StoredSuggestion:
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
    )
