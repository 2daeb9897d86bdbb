"""The batcher's queue: batching, order, deadlines, back-pressure and superseded requests.

The fake network blocks each batch until the test releases it.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import pytest

from jaxtempl.bundle.bundle import Bundle
from jaxtempl.errors import UserError
from jaxtempl.serve.batcher import Batcher, FailedError, FullError, LateError, SupersededError
from jaxtempl.serve.inference.model import ServedModel
from jaxtempl.serve.metrics import Metrics

SLOTS = 7


class Network:
    """A network that waits for a permit for each batch and records its inputs."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.asked: list[tuple[int, ...]] = []
        self.broken: set[int] = set()  # the network fails on rows of these ids
        self.poison = False

    def __call__(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        self.asked.append((ids.shape[1], *(int(row[0]) for row in ids)))
        assert self.permits.acquire(timeout=10)
        if self.broken & {int(row[0]) for row in ids}:
            raise UserError(f"no row {ids[0, 0]}\nin the table")
        logits = np.repeat(ids[:, :1].astype(np.float32), SLOTS, axis=1)
        logits[(ids[:, 0] == 13) & self.poison] = np.nan
        return logits

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundles.write_serving_bundle(tmp_path_factory.mktemp("batcher") / "b")


class Rig:
    """A batcher whose model runs the fake network; `ask` sends a request that repeats the id `first`."""

    def __init__(self, folder: Path, batch: int = 4, queue: int = 8, timeout: float = 30.0) -> None:
        self.network, self.metrics = Network(), Metrics()
        self.network.permits.release(8)  # for the warm-up
        self.model = ServedModel(Bundle.open(folder), self.network, "test").warm(2)
        self.network.asked.clear()
        self.batcher = Batcher(batch, queue, timeout, self.metrics)

    async def ask(self, first: int, length: int = 10, case: str | None = None) -> float:
        with self.batcher.enqueue(case) as place:
            logits = await self.batcher.logits(place, self.model, [first] * length)
        return float(logits[0])

    async def asked(self, *wanted: int, **each: Any) -> "list[asyncio.Future[float]]":
        """Send requests one after another, and return when all are in the queue or on the network."""
        tasks = [asyncio.ensure_future(self.ask(first, **each)) for first in wanted]
        await self.settle()
        return tasks

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def running(self, count: int) -> None:
        """Wait until the network has received `count` batches."""
        while len(self.network.asked) < count:
            await asyncio.sleep(0.001)

    def go(self, batches: int = 1) -> None:
        self.network.permits.release(batches)


Test = Callable[[Rig], Awaitable[None]]


def run(folder: Path, test: Test, **options: Any) -> None:
    async def whole() -> None:
        rig = Rig(folder, **options)
        try:
            async with asyncio.timeout(20):
                await test(rig)
        finally:
            rig.go(99)
            await rig.batcher.close()

    asyncio.run(whole())


def test_a_lone_request_runs_immediately_and_waiting_requests_are_batched(folder: Path) -> None:
    async def test(rig: Rig) -> None:
        first = await rig.asked(2)
        await rig.running(1)
        rest = await rig.asked(3, 4, 5, 6, 7)
        assert rig.batcher.waiting == 5
        rig.go(3)
        assert await asyncio.gather(*first, *rest) == [2, 3, 4, 5, 6, 7]
        assert rig.network.asked == [(64, 2), (64, 3, 4, 5, 6), (64, 7)]

    run(folder, test)


def test_a_batch_has_one_bucket_and_the_oldest_request_runs_first(folder: Path) -> None:
    async def test(rig: Rig) -> None:
        first = await rig.asked(2)
        await rig.running(1)
        rest = [*await rig.asked(3, length=100), *await rig.asked(4), *await rig.asked(5, length=65)]
        rig.go(3)
        assert await asyncio.gather(*first, *rest) == [2, 3, 4, 5]
        assert rig.network.asked == [(64, 2), (128, 3, 5), (64, 4)]

    run(folder, test)


def test_a_batch_has_one_model(folder: Path) -> None:
    async def test(rig: Rig) -> None:
        old, other = rig.model, Rig(folder)
        first = await rig.asked(2)
        await rig.running(1)
        waiting = await rig.asked(3)
        rig.model = other.model
        newer = await rig.asked(4)
        assert rig.batcher.uses(old)
        rig.go(2)
        other.go()
        assert await asyncio.gather(*first, *waiting, *newer) == [2, 3, 4]
        assert (rig.network.asked, other.network.asked) == ([(64, 2), (64, 3)], [(64, 4)])
        assert not rig.batcher.uses(old)
        await other.batcher.close()

    run(folder, test)


def test_a_failed_batch_fails_only_its_requests(folder: Path) -> None:
    async def test(rig: Rig) -> None:
        first = await rig.asked(2)
        await rig.running(1)
        rest = await rig.asked(3, 4, 5, 6, 7)
        rig.network.broken = {3, 4, 5, 6}
        rig.go(7)
        found = await asyncio.gather(*first, *rest, return_exceptions=True)
        assert [type(each) for each in found] == [float, *[FailedError] * 4, float]
        assert b"jaxtempl_failed_batches_total 1.0" in rig.metrics.render()

    run(folder, test)


def test_a_row_that_fails_does_not_fail_its_batch(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The others are computed again, one at a time, except those that no client waits for; the log states the cause."""

    async def test(rig: Rig) -> None:
        rig.network.broken = {4}
        first = await rig.asked(2)
        await rig.running(1)
        rest = await rig.asked(3, 4, 5, 6)
        rig.go()
        await rig.running(2)
        rest[0].cancel()
        await rig.settle()
        rig.go(4)
        found = await asyncio.gather(*first, *rest[1:], return_exceptions=True)
        assert [type(each) for each in found] == [float, FailedError, float, float]
        assert rig.network.asked == [(64, 2), (64, 3, 4, 5, 6), (64, 4), (64, 5), (64, 6)]
        assert b"jaxtempl_failed_batches_total 1.0" in rig.metrics.render()

    run(folder, test)
    logged = [(record.msg, vars(record)["fields"]) for record in caplog.records]
    assert [(event, fields["rows"], fields["why"]) for event, fields in logged] == [
        ("batch failed", 4, "no row #"),
        ("request failed", 1, "no row #"),
    ]


def test_a_row_that_is_not_finite_fails_only_its_request(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(rig: Rig) -> None:
        rig.network.poison = True
        first = await rig.asked(2)
        await rig.running(1)
        rest = await rig.asked(3, 13, 5)
        rig.go(2)
        found = await asyncio.gather(*first, *rest, return_exceptions=True)
        assert [type(each) for each in found] == [float, float, FailedError, float]

    run(folder, test)
    assert [vars(record)["fields"]["why"] for record in caplog.records] == ["a logit is not finite"]


def test_a_full_queue_rejects_requests_with_a_retry_delay(folder: Path) -> None:
    async def test(rig: Rig) -> None:
        first = await rig.asked(2)
        await rig.running(1)
        rest = await rig.asked(3, 4)
        with pytest.raises(FullError) as refused:
            await rig.ask(5)
        assert refused.value.after >= 1
        rig.go(2)
        assert await asyncio.gather(*first, *rest) == [2, 3, 4]
        rig.go()
        assert await rig.ask(6) == 6, "the queue has room again"

    run(folder, test, queue=2)


def test_a_request_that_cannot_meet_its_deadline_is_rejected_immediately(folder: Path) -> None:
    async def test(rig: Rig) -> None:
        rig.model.pace.update(dict.fromkeys(rig.model.pace, 7.0))
        first = await rig.asked(2)
        await rig.running(1)
        with pytest.raises(FullError) as refused:
            await rig.ask(3)
        assert refused.value.after == 7
        assert rig.batcher.waiting == 0
        rig.go()
        assert await asyncio.gather(*first) == [2]

    run(folder, test, timeout=5.0)


def test_a_request_whose_deadline_has_passed_is_never_run(folder: Path) -> None:
    async def test(rig: Rig) -> None:
        first = await rig.asked(2)
        await rig.running(1)
        with pytest.raises(LateError):
            await rig.ask(3)
        assert rig.batcher.waiting == 0
        with pytest.raises(LateError):
            await first[0]  # it still runs on the network, but no client waits for it
        rig.go(2)
        assert await rig.ask(4) == 4
        assert rig.network.asked == [(64, 2), (64, 4)]

    run(folder, test, timeout=0.2)


def test_deadlines_are_checked_again_before_a_batch_starts(folder: Path) -> None:
    """Timers fire late while the event loop is busy."""

    async def test(rig: Rig) -> None:
        first = await rig.asked(2)
        await rig.running(1)
        late = await rig.asked(3)
        next(iter(rig.batcher._waiting)).deadline = 0.0
        rig.go()
        found = await asyncio.gather(*first, *late, return_exceptions=True)
        assert [type(each) for each in found] == [float, LateError]
        assert rig.network.asked == [(64, 2)]

    run(folder, test)


def test_a_newer_request_of_a_case_supersedes_a_waiting_one(folder: Path) -> None:
    async def test(rig: Rig) -> None:
        first = await rig.asked(2, case="a")
        await rig.running(1)
        older = await rig.asked(3, case="a")
        other = await rig.asked(4, case="b")
        newer = await rig.asked(5, case="a")
        with pytest.raises(SupersededError):
            await older[0]
        rig.go(2)
        assert await asyncio.gather(*first, *other, *newer) == [2, 4, 5], "a running request is not superseded"
        assert rig.network.asked == [(64, 2), (64, 4, 5)]

    run(folder, test)


def test_a_newer_request_of_a_case_needs_no_additional_room(folder: Path) -> None:
    async def test(rig: Rig) -> None:
        first = await rig.asked(2)
        await rig.running(1)
        older = await rig.asked(3, case="a")
        newer = await rig.asked(4, case="a")
        with pytest.raises(SupersededError):
            await older[0]
        rig.go(2)
        assert await asyncio.gather(*first, *newer) == [2, 4]

    run(folder, test, queue=1)


def test_a_cancelled_request_frees_its_place(folder: Path) -> None:
    async def test(rig: Rig) -> None:
        first = await rig.asked(2)
        await rig.running(1)
        left = await rig.asked(3)
        left[0].cancel()
        await rig.settle()
        assert rig.batcher.waiting == 0
        second = await rig.asked(4)
        rig.go(2)
        assert await asyncio.gather(*first, *second) == [2, 4]
        assert rig.network.asked == [(64, 2), (64, 4)]

    run(folder, test, queue=1)


def test_a_request_that_is_still_read_holds_a_place_and_can_be_superseded(folder: Path) -> None:
    async def test(rig: Rig) -> None:
        with rig.batcher.enqueue("a") as place:
            assert rig.batcher.waiting == 1
            newer = await rig.asked(5, case="a")
            rig.go()
            assert await newer[0] == 5
            with pytest.raises(SupersededError):
                await rig.batcher.logits(place, rig.model, [2])

    run(folder, test)


def test_the_pace_of_a_bucket_follows_its_batches(folder: Path) -> None:
    async def test(rig: Rig) -> None:
        assert set(rig.model.pace) == {64, 128, 256, 512}
        rig.model.pace[64] = 100.0
        rig.go()
        await rig.ask(2)
        assert 80 <= rig.model.pace[64] < 81

    run(folder, test, timeout=1000.0)


def test_requests_that_will_miss_their_deadline_run_last(folder: Path) -> None:
    async def test(rig: Rig) -> None:
        first = await rig.asked(2)
        await rig.running(1)
        hopeless = [*await rig.asked(3, length=100), *await rig.asked(4, length=200)]
        able = await rig.asked(5)
        rig.model.pace |= {128: 99.0, 256: 99.0}
        rig.go(4)
        assert await asyncio.gather(*first, *hopeless, *able) == [2, 3, 4, 5]
        assert rig.network.asked == [(64, 2), (64, 5), (256, 4), (128, 3)], "the newest of the late requests runs first"

    run(folder, test, timeout=50.0)
