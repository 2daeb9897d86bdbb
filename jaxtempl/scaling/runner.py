"""`bin/scaling run`: the jobs of a study as processes, each on its own cores, until all are done or nothing can start.

A job that another shard has in hand is left to it (a lock a job, in the shared folder); one that fails is told with the
last line of its log, and holds up only those that need what it makes. SIGTERM and Ctrl-C are passed on: trainings save
after the step in hand, and the same command goes on. What was compiled for one job serves every later one of the same
shapes: all read and write one cache, `compiled/`.
"""

import concurrent.futures
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import filelock

from jaxtempl.config import parsing
from jaxtempl.config.paths import ROOT
from jaxtempl.config.scaling import ScalingRunConfig
from jaxtempl.errors import Interrupted, UsageError, UserError
from jaxtempl.scaling import progress, results, study
from jaxtempl.scaling.jobs import Job, Jobs, shard
from jaxtempl.scaling.progress import Board, Clock, State

SECONDS = 2.0  # between looks at what has become possible


def main(argv: Sequence[str]) -> None:
    """`bin/scaling run`."""
    asked = parsing.parse(ScalingRunConfig, argv)
    print(parsing.dump(asked), flush=True)
    run(asked)


def run(asked: ScalingRunConfig) -> None:
    """Runs a study, or a shard of it, as far as it can be run, and writes its results.

    Raises:
        UserError: the file is no study, or some jobs failed.
        Interrupted: SIGTERM or Ctrl-C came.
    """
    read = study.read(study.path(asked.study))
    data = Path(asked.data or os.environ.get("JAXTEMPL_DATA", ""))
    jobs = Jobs(read, Path(asked.out or f"runs/scaling/{read.name}"), data)
    every = study.cells(read)
    wanted = shard([cell for cell in every if cell.size in _sizes(asked, read)], *_shard(asked.shard))
    todo = jobs.of(wanted)
    processes = asked.processes or len(_cores())
    if asked.plan:
        return print(plan(todo, Clock(jobs.out), processes))
    if not asked.data and not data.parts:
        raise UsageError("where are the datasets' files? pass --data=DIR or set JAXTEMPL_DATA")
    jobs.out.mkdir(parents=True, exist_ok=True)
    failed = Runner(todo, jobs.out, processes, lambda: results.collect(jobs, every)).run()
    count = results.collect(jobs, every)
    print(f"{jobs.out / results.FILE}: {count:,} of {len(every):,} cells")
    if failed:
        raise UserError(f"{len(failed)} jobs failed or could not start: {'; '.join(failed)}")


def _sizes(asked: ScalingRunConfig, read: study.Study) -> Sequence[str]:
    unknown = [size for size in asked.sizes if size not in read.sizes]
    if unknown:
        raise UsageError(f"--sizes={','.join(unknown)} is none of the study's, which are {', '.join(read.sizes)}")
    return asked.sizes or read.sizes


def _shard(text: str) -> tuple[int, int]:
    which, slash, of = text.partition("/")
    if not (slash and which.isdigit() and of.isdigit() and 1 <= int(which) <= int(of)):
        raise UsageError(f"--shard={text!r} is not I/N with I from 1 to N")
    return int(which), int(of)


def plan(todo: Sequence[Job], clock: Clock, processes: int) -> str:
    """What would be run, in order, and how long it would take as far as that is known."""
    lines: list[str] = []
    for job in todo:
        guess = clock.seconds(job)
        said = "done" if job.done else progress.spoken(guess) if guess is not None else ""
        lines += [f"# {job.name}  {said}".rstrip(), *(f"bin/{' '.join(command)}" for command in job.commands)]
    left = [job for job in todo if not job.done]
    cells = sum(job.kind == "cells" for job in todo)
    return "\n".join(
        [*lines, f"{cells:,} cells, {len(left):,} of {len(todo):,} jobs to do; {progress.left(left, clock, processes)}"]
    )


class Runner:
    """Runs jobs.

    Args:
        todo: in the order in which they are to start where they can.
        out: the study's folder.
        processes: that run at a time.
        finished: called after each cell.
    """

    def __init__(self, todo: Sequence[Job], out: Path, processes: int, finished: Callable[[], object]) -> None:
        self._todo, self._out, self._finished = todo, out, finished
        self._processes = processes
        self._clock = Clock(out)
        self._board = Board(todo, self._clock, processes)
        self._states: dict[str, State] = {job.name: "done" if job.done else "waiting" for job in todo}
        self._seats: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
        for seat in _seats(processes):
            self._seats.put(seat)
        self._children: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._why: dict[str, str] = {}

    def run(self) -> list[str]:
        """Runs all that can be; what failed or could not start, and why.

        Raises:
            Interrupted: it was asked to stop.
        """
        running: dict[Future[str], Job] = {}
        self._board.show(self._states, f"{len(self._todo):,} jobs")
        with ThreadPoolExecutor(self._processes) as pool, self._listening():
            while True:
                free = self._processes - len(running)
                running |= {pool.submit(self._run, job, lock): job for job, lock in self._next(free)}
                if not running and not any(state == "elsewhere" for state in self._states.values()):
                    break
                ended, _ = concurrent.futures.wait(running, SECONDS, concurrent.futures.FIRST_COMPLETED)
                if not running:
                    time.sleep(SECONDS)
                for future in ended:
                    self._ended(running.pop(future), future.result())
        if self._stopped:
            raise Interrupted("stopped, as asked; the same command goes on")
        return [*self._why.values(), *self._stuck()]

    def _next(self, free: int) -> Generator[tuple[Job, filelock.BaseFileLock]]:
        """Jobs that can start now, locked, as many as there is room for."""
        for job in self._todo:
            if self._states[job.name] in ("waiting", "elsewhere") and not self._stopped:
                if job.done:
                    self._states[job.name] = "done"
                    self._board.show(self._states, f"{job.name}: done elsewhere")
                elif free > 0 and job.ready and (lock := self._lock(job)):
                    free -= 1
                    self._states[job.name] = "running"
                    self._board.show(self._states, f"{job.name}: begun")
                    yield job, lock

    def _lock(self, job: Job) -> filelock.BaseFileLock | None:
        """The job's lock; None where another shard has it."""
        path = self._out / "locks" / f"{job.name.replace('/', '_')}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            self._states[job.name] = "elsewhere"
            return None
        self._states[job.name] = "waiting"
        return lock

    def _run(self, job: Job, lock: filelock.BaseFileLock) -> str:
        """Runs the job's commands on a seat's cores; why it failed, or nothing."""
        seat = self._seats.get()
        try:
            if hasattr(os, "sched_setaffinity"):  # Linux
                os.sched_setaffinity(0, seat)  # of this thread, and so of what it starts
            started = time.monotonic()
            for command in job.commands:
                why = "" if self._stopped else self._command(job, command)
                if why or self._stopped:
                    return why or "stopped"
            job.finish()
            self._clock.add(job, time.monotonic() - started)
            return ""
        finally:
            lock.release()
            self._seats.put(seat)

    def _command(self, job: Job, command: Sequence[str]) -> str:
        log = self._out / "logs" / f"{job.name.replace('/', '_')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        cache = {"JAX_COMPILATION_CACHE_DIR": str((self._out / "compiled").resolve())}
        with log.open("ab") as file:
            file.write(f"$ bin/{' '.join(command)}\n".encode())
            file.flush()
            child = subprocess.Popen(
                [ROOT / "bin" / command[0], *command[1:]],
                stdout=file,
                stderr=file,
                env={**os.environ, **cache},
                start_new_session=True,  # Ctrl-C is passed on by this process, as SIGTERM
            )
            self._children.add(child)
            code = child.wait()
            self._children.discard(child)
        return f"{job.name}: {_last_line(log)} ({log})" if code else ""

    def _ended(self, job: Job, why: str) -> None:
        if why and not self._stopped:
            self._why[job.name] = why
        self._states[job.name] = "failed" if why else "done"
        if not why and job.kind == "cells":
            self._finished()
        self._board.show(self._states, why or f"{job.name}: done")

    def _stuck(self) -> list[str]:
        """Jobs that wait for what nobody makes."""
        waiting = [job for job in self._todo if self._states[job.name] == "waiting"]
        return [f"{len(waiting)} wait for what failed, {waiting[0].name} among them"] if waiting else []

    @contextmanager
    def _listening(self) -> Generator[None]:
        """Passes SIGTERM and Ctrl-C on to the children."""

        def stop(number: int, frame: FrameType | None) -> None:
            self._stopped = True
            print("stopping: trainings save after the step in hand", file=sys.stderr, flush=True)
            for child in list(self._children):
                child.send_signal(signal.SIGTERM)

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _seats(processes: int) -> list[set[int]]:
    """The cores of each process: an equal part of them, or all where there are more processes than cores."""
    cores = sorted(_cores())
    parts = [set(cores[i::processes]) for i in range(processes)]
    return [part or set(cores) for part in parts]


def _cores() -> set[int]:
    """Those that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
