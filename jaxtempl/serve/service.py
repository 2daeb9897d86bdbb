"""Suggest, store events, and change models and experiments, independent of the protocol. No HTTP, no JAX."""

import asyncio
import contextlib
import gc
import logging
import secrets
import time
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path

from jaxtempl.config.serving import ServeConfig
from jaxtempl.errors import UserError
from jaxtempl.serve import logs
from jaxtempl.serve.arms import Arms, open_arms
from jaxtempl.serve.batcher import Batcher, QueueEntry, RefusedError
from jaxtempl.serve.events.store import Store, StoredShadow
from jaxtempl.serve.experiments import definition
from jaxtempl.serve.experiments.definition import Experiments
from jaxtempl.serve.exposure import Computed
from jaxtempl.serve.inference.model import ServedModel, open_model
from jaxtempl.serve.metrics import Metrics
from jaxtempl.serve.schema import ContextRequest, Event, FieldError, SuggestAnswer, SuggestRequest
from jaxtempl.serve.shadow import ShadowProcess
from jaxtempl.text.cases import KnownValues, Message, known_values

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


class Service:
    """One server's models, queue and store; created and used on one event loop.

    Attributes:
        model: The production model; None until the first one is warm.
        metrics: Metrics of the server.
    """

    def __init__(self, config: ServeConfig, store: Store, metrics: Metrics) -> None:
        self.model: ServedModel | None = None
        self.metrics = metrics
        self._config, self._store = config, store
        self._experiments = config.experiments
        self._previous: ServedModel | None = None
        self._arms = Arms()
        self._reading = Counter[ServedModel]()  # requests that have a model, and perhaps no place in the queue yet
        self._changing = asyncio.Lock()
        self._timeout = config.timeout_ms / 1000
        self._batcher = Batcher(config.max_batch_size, config.queue, self._timeout, metrics)
        metrics.gauge("jaxtempl_queue_depth", "Requests in the queue", lambda: self._batcher.waiting)
        metrics.gauge("jaxtempl_store_waiting", "Records that wait to be written", lambda: store.waiting)
        metrics.gauge("jaxtempl_store_available", "1 if the database was reached", lambda: store.is_available)
        metrics.gauge("jaxtempl_store_dropped", "Suggestions that could not be stored", lambda: store.dropped)

    async def suggest(self, request: ContextRequest | SuggestRequest, keep: bool = True) -> SuggestAnswer:
        """Answer a request, and store the answer.

        Args:
            request: The request.
            keep: Whether to store an answer that no experiment counts.

        Raises:
            FieldError: No message has text.
            RefusedError: Nothing was computed; the error's type says why.
        """
        started = time.perf_counter()
        try:
            computed = await self._compute(request)
        except RefusedError as error:
            self.metrics.refused.labels(error.reason).inc()
            raise
        self._count(computed, request)
        answer = computed.answer(secrets.token_hex(16), time.perf_counter() - started)
        if keep or computed.assignment:
            self._store.add(computed.record(request, answer))
        return answer

    async def shadow(self, suggestion_id: str, request: SuggestRequest) -> None:
        """Let the shadow compute a share of the requests, after their answers."""
        shadow, sampled = self._arms.shadow, self._arms.experiments.shadow
        if shadow is None or sampled is None or int(suggestion_id[:8], 16) >= sampled.share * 2**32:
            return
        if not shadow.submit(suggestion_id, request):
            self.metrics.shadow.labels("dropped").inc()

    async def commit_event(self, event: Event) -> None:
        """Store an event; raises as `Store.commit_event`."""
        await self._store.commit_event(event)
        self.metrics.events.labels(event.event).inc()

    async def load(self, folder: Path, experiments: str | None = None) -> str:
        """Verify and warm bundles next to those that serve, then serve them from the next request on.

        Args:
            folder: Production bundle.
            experiments: File of experiments; None reads the current one again.

        Returns:
            Version of the production bundle.

        Raises:
            BusyError: Another change is in progress.
            UserError: A bundle cannot be served, or the experiments would reassign pairs; what serves stays.
        """
        if self._changing.locked():
            raise BusyError
        async with self._changing:
            path = self._experiments if experiments is None else experiments
            try:
                new, arms = await asyncio.to_thread(self._open, folder, path)
            except UserError as error:
                self.metrics.reloads.labels("refused").inc()
                logs.log_event("bundle refused", logging.WARNING, why=str(error))
                raise
            retired, shadow = self._loaded(), self._arms.shadow
            self._previous, self._arms, self._experiments = self.model, arms, path
            self._switch(new, "reloaded" if self._previous else "loaded")
            retired -= self._loaded()
            if shadow and shadow is not arms.shadow:
                await asyncio.to_thread(shadow.close)
            if retired:
                await self._close(retired)
                gc.collect()  # frees the networks' memory now, not at a later collection
            return new.version

    async def rollback(self) -> str:
        """Serve the previous model, which is still warm; a second rollback returns to the current one.

        Experiments stay in force.

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
        if self._arms.shadow:
            await asyncio.to_thread(self._arms.shadow.close)
        await asyncio.to_thread(self._store.close)
        for model in self._loaded():
            model.close()

    async def _compute(self, request: ContextRequest | SuggestRequest) -> Computed:
        started = time.perf_counter()
        if self.model is None:
            raise NotReadyError
        arms = self._arms
        assignment = arms.assign(request, request.case_id)
        model = arms.model(assignment, self.model)
        messages = request.with_text()
        if not messages:
            raise FieldError("messages", "no message has text")
        with self._using(model), self._batcher.enqueue(request.case_id) as entry:
            ids, dropped = await _read_window(model, messages, known_values(request.known_values), entry)
            self.metrics.observe("read", time.perf_counter() - started)
            logits = await self._batcher.logits(entry, model, ids)
        computed = time.perf_counter()
        best, reason = model.rank(logits, request)
        self.metrics.observe("rank", time.perf_counter() - computed)
        self.metrics.observe("total", time.perf_counter() - started)
        return Computed(best, reason, assignment, arms.sha256, model.version, len(ids), dropped)

    def _count(self, computed: Computed, request: ContextRequest | SuggestRequest) -> None:
        self.metrics.suggestions.labels(computed.outcome).inc()
        if computed.assignment:
            self.metrics.exposures.labels(computed.assignment.arm).inc()
        elif self._arms.is_assigning and None in (request.advocate_id, request.case_id):
            self.metrics.unassigned.inc()

    @contextlib.contextmanager
    def _using(self, model: ServedModel) -> Generator[None]:
        self._reading[model] += 1
        try:
            yield
        finally:
            self._reading[model] -= 1

    def _open(self, folder: Path, path: str) -> tuple[ServedModel, Arms]:
        """Open what serves next, and put its experiments in force; if that fails, close what was opened."""
        experiments = definition.read(Path(path)) if path else Experiments()
        with contextlib.ExitStack() as opened:
            model = open_model(folder, self._config)
            opened.callback(model.close)
            arms = open_arms(
                experiments,
                self._arms,
                [*self._loaded(), model],
                lambda bundle: open_model(bundle, self._config),
                lambda bundle: ShadowProcess(bundle, self._config, self._add_shadow),
                opened,
            )
            self._store.adopt(experiments)
            opened.pop_all()
        return model, arms

    def _add_shadow(self, answer: StoredShadow | None) -> None:
        self.metrics.shadow.labels("computed" if answer else "failed").inc()
        if answer:
            self._store.add(answer)

    def _loaded(self) -> set[ServedModel]:
        return {model for model in (self.model, self._previous, *self._arms.models.values()) if model}

    def _switch(self, model: ServedModel, outcome: str) -> None:
        self.model = model
        self.metrics.set_version(model.version)
        self.metrics.reloads.labels(outcome).inc()
        logs.log_event(f"model {outcome}", version=model.version, bundle=str(model.folder))
        late = {str(length): round(1000 * pace) for length, pace in model.pace.items() if pace > self._timeout}
        if late:
            logs.log_event("windows of these lengths take longer than --timeout_ms", logging.WARNING, milliseconds=late)

    async def _close(self, retired: set[ServedModel]) -> None:
        """Close and forget models that are out of use, after their last requests were computed."""
        while retired:
            model = retired.pop()
            while self._reading[model] or self._batcher.uses(model):
                await asyncio.sleep(0.01)
            del self._reading[model]
            await asyncio.to_thread(model.close)


async def _read_window(
    model: ServedModel, messages: Sequence[Message], known: KnownValues, entry: QueueEntry
) -> tuple[list[int], int]:
    """Read the window, a long one in a thread; raise the entry's error as soon as it is refused."""
    if sum(len(message.text) for message in messages) <= INLINE:
        return model.window.encode(messages, known)
    reading = asyncio.ensure_future(asyncio.to_thread(model.window.encode, messages, known))
    await asyncio.wait((reading, entry.answer), return_when=asyncio.FIRST_COMPLETED)
    if not reading.done():
        await entry.answer
    return reading.result()
