"""What the server does, whatever asks it: suggests, keeps events, changes its model. No HTTP, no JAX."""

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

INLINE = 8_000  # characters that are tokenized on the event loop, in some 3 ms; more are in a thread


class NotReadyError(RefusedError):
    """No model is loaded yet."""

    reason = "not ready"

    def __init__(self) -> None:
        super().__init__("the model is not loaded yet; try again later")


class BusyError(Exception):
    """Another change of the model is under way."""

    def __init__(self) -> None:
        super().__init__("another change of the model is under way; try again when it is done")


class ServedSuggestions(NamedTuple):
    """What was found for one context.

    Attributes:
        suggestions: best first.
        reason: why there is none; None where there is one.
        version: of the model that answered.
        tokens: of the window that was read.
        dropped: messages older than the window.
    """

    suggestions: list[Ranked]
    reason: str | None
    version: str
    tokens: int
    dropped: int


class Service:
    """One server's models, queue and store; made and used on one event loop.

    Attributes:
        model: that serves; None until the first one is warm.
        metrics: of the server.
    """

    def __init__(self, asked: ServeConfig, store: Store, metrics: Metrics) -> None:
        self.model: ServedModel | None = None
        self.metrics = metrics
        self._asked, self._store = asked, store
        self._previous: ServedModel | None = None
        self._changing = asyncio.Lock()
        self._timeout = asked.timeout_ms / 1000
        self._batcher = Batcher(asked.max_batch_size, asked.queue, self._timeout, metrics)
        metrics.gauge("jaxtempl_queue_depth", "Requests that wait", lambda: self._batcher.waiting)
        metrics.gauge("jaxtempl_store_waiting", "Records that wait to be written", lambda: store.waiting)
        metrics.gauge("jaxtempl_store_dropped", "Suggestions that could not be kept", lambda: store.dropped)

    async def suggest(self, asked: SuggestRequest) -> SuggestAnswer:
        """Answers a request and keeps what was answered.

        Raises:
            FieldError: no message has text.
            RefusedError: nothing was computed; its kind says why.
        """
        began = time.perf_counter()
        found = await self.find(asked)
        answer = SuggestAnswer(
            suggestion_id=secrets.token_hex(16),
            suggestions=[Suggested(*each) for each in found.suggestions],
            no_suggestion=found.reason,
            model_version=found.version,
            tokens=found.tokens,
            dropped_messages=found.dropped,
            latency_ms=round(1000 * (time.perf_counter() - began), 3),
        )
        self._store.suggested(_record(asked, answer))
        return answer

    async def find(self, asked: ContextRequest | SuggestRequest) -> ServedSuggestions:
        """What is suggested for a context; raises as `suggest`."""
        try:
            return await self._find(asked)
        except RefusedError as error:
            self.metrics.refused.labels(error.reason).inc()
            raise

    async def keep(self, event: Event) -> None:
        """Keeps an event; raises as `Store.keep`."""
        await self._store.keep(event)
        self.metrics.events.labels(event.event).inc()

    async def load(self, folder: Path) -> str:
        """Verifies and warms a bundle beside the one that serves, and serves it from the next batch on.

        Returns:
            Its version.

        Raises:
            BusyError: another change is under way.
            UserError: it cannot be served; what served before still does.
        """
        if self._changing.locked():
            raise BusyError
        async with self._changing:
            try:
                new = await asyncio.to_thread(open_model, folder, self._asked)
            except UserError as error:
                self.metrics.reloads.labels("refused").inc()
                logs.log_event("bundle refused", logging.WARNING, why=str(error))
                raise
            retired, self._previous = self._previous, self.model
            self._serve(new, "reloaded" if self._previous else "loaded")
            if retired:
                await self._close(retired)
                del retired
                gc.collect()  # a network is large: it goes now, not when the collector comes by
            return new.version

    async def rollback(self) -> str:
        """Serves the model before this one, which is still warm; a second time goes forth again.

        Returns:
            Its version.

        Raises:
            BusyError: another change is under way.
            UserError: there is none.
        """
        if self._changing.locked():
            raise BusyError
        if self._previous is None or self.model is None:
            raise UserError("no other model has served since the start; nothing to go back to")
        self._previous, before = self.model, self._previous
        self._serve(before, "rolled back")
        return before.version

    async def close(self) -> None:
        """Ends the queue, writes what is to be kept, and gives the models back."""
        await self._batcher.close()
        await asyncio.to_thread(self._store.close)
        for model in (self.model, self._previous):
            if model:
                model.close()

    async def _find(self, asked: ContextRequest | SuggestRequest) -> ServedSuggestions:
        began = time.perf_counter()
        model = self.model
        if model is None:
            raise NotReadyError
        messages = [Message(said.role, said.text) for said in asked.messages if said.text.strip()]
        if not messages:
            raise FieldError("messages", "no message has text")
        with self._batcher.place(asked.case_id) as place:
            ids, dropped = await _window(model, messages, place)
            self.metrics.took("read", time.perf_counter() - began)
            logits = await self._batcher.logits(place, model, ids)
        computed = time.perf_counter()
        suggestions, reason = _chosen(model.ranker.best(logits, asked.k, asked.allowed), asked)
        self.metrics.took("rank", time.perf_counter() - computed)
        self.metrics.took("total", time.perf_counter() - began)
        self.metrics.suggestions.labels("none" if reason else "some").inc()
        return ServedSuggestions(suggestions, reason, model.version, len(ids), dropped)

    def _serve(self, model: ServedModel, how: str) -> None:
        self.model = model
        self.metrics.serves(model.version)
        self.metrics.reloads.labels(how).inc()
        logs.log_event(f"model {how}", version=model.version, bundle=str(model.folder))
        late = {str(length): round(1000 * pace) for length, pace in model.pace.items() if pace > self._timeout}
        if late:
            logs.log_event("windows of these lengths take longer than --timeout_ms", logging.WARNING, milliseconds=late)

    async def _close(self, model: ServedModel) -> None:
        """Closes a model that nobody can go back to, once its last request has been computed."""
        while self._batcher.uses(model):
            await asyncio.sleep(0.01)
        await asyncio.to_thread(model.close)


async def _window(model: ServedModel, messages: Sequence[Message], place: QueueEntry) -> tuple[list[int], int]:
    """The window; a long one is read in a thread. Raises what the place is lost by, as soon as it is."""
    if sum(len(message.text) for message in messages) <= INLINE:
        return model.window.encode(messages)
    reading = asyncio.ensure_future(asyncio.to_thread(model.window.encode, messages))
    await asyncio.wait((reading, place.answer), return_when=asyncio.FIRST_COMPLETED)
    if not reading.done():
        await place.answer
    return reading.result()


def _chosen(best: list[Ranked], asked: SuggestInput) -> tuple[list[Ranked], str | None]:
    """What is suggested of the best, and why nothing is."""
    if not best:
        return [], "none of the allowed templates is known and active"
    if asked.threshold is not None and best[0].probability < asked.threshold:
        return [], "the best one is below the threshold"
    return best, None


def _record(asked: SuggestRequest, answer: SuggestAnswer) -> StoredSuggestion:
    return StoredSuggestion(
        suggestion_id=answer.suggestion_id,
        at=datetime.now(UTC),
        case_id=asked.case_id,
        advocate_id=asked.advocate_id,
        model_version=answer.model_version,
        templates=[each.template for each in answer.suggestions],
        probabilities=[each.probability for each in answer.suggestions],
        tokens=answer.tokens,
        dropped_messages=answer.dropped_messages,
        k=asked.k,
        threshold=asked.threshold,
        latency_ms=answer.latency_ms,
        reason=answer.no_suggestion,
    )
