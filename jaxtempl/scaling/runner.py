"""Runs the jobs of a study as processes, each on its own cores, until all are done or none can start.

A lock for each job, in the shared folder, keeps two shards from running the same job. A failed job is reported with
the last line of its log and blocks only the jobs that need its output. SIGTERM and Ctrl-C are forwarded: trainings save
after the current step, and the same command resumes. All jobs share one compilation cache, `compiled/`.
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

from jaxtempl.config import paths
from jaxtempl.config.scaling import ScalingRunConfig
from jaxtempl.errors import Interrupted, UsageError, UserError
from jaxtempl.scaling import progress, results, study
from jaxtempl.scaling.jobs import Job, Jobs, shard
from jaxtempl.scaling.progress import DurationEstimator, JobState, ProgressDisplay

POLL_SECONDS = 2.0


def run(config: ScalingRunConfig) -> None:
    """Run a study, or a shard of it, as far as possible, and write its results.

    Raises:
        UserError: The study file is invalid, or jobs failed.
        Interrupted: SIGTERM or Ctrl-C arrived.
    """
    loaded = study.read(study.find(config.study))
    data = Path(config.data or os.environ.get("JAXTEMPL_DATA", ""))
    jobs = Jobs(loaded, Path(config.out or f"runs/scaling/{loaded.name}"), data)
    cells = study.cells(loaded)
    sizes = _sizes(config, loaded)
    pending = jobs.resolve(shard([cell for cell in cells if cell.size in sizes], *parse_shard(config.shard)))
    processes = config.processes or len(_available_cores())
    if config.plan:
        return print(format_plan(pending, DurationEstimator(jobs.out), processes))
    if not config.data and not data.parts:
        raise UsageError("the folder of the datasets' files is unknown; pass --data=DIR or set JAXTEMPL_DATA")
    jobs.out.mkdir(parents=True, exist_ok=True)
    failures = JobRunner(pending, jobs.out, processes, lambda: results.collect(jobs, cells)).run()
    count = results.collect(jobs, cells)
    print(f"{jobs.out / results.FILE}: {count:,} of {len(cells):,} cells")
    if failures:
        raise UserError(f"{len(failures)} jobs failed or could not start: {'; '.join(failures)}")


def _sizes(config: ScalingRunConfig, loaded: study.Study) -> Sequence[str]:
    unknown = [size for size in config.sizes if size not in loaded.sizes]
    if unknown:
        raise UsageError(f"--sizes={','.join(unknown)} is not in the study, whose sizes are {', '.join(loaded.sizes)}")
    return config.sizes or loaded.sizes


def parse_shard(text: str) -> tuple[int, int]:
    """Parse `I/N` into the shard's index, from 1, and the number of shards."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise UsageError(f"--shard={text!r} is not I/N with I from 1 to N")
    return int(index), int(count)


def format_plan(jobs: Sequence[Job], durations: DurationEstimator, processes: int) -> str:
    """Format the commands in order, with the estimated durations."""
    lines: list[str] = []
    for job in jobs:
        seconds = durations.estimate(job)
        note = "done" if job.is_done else progress.format_duration(seconds) if seconds is not None else ""
        lines += [f"# {job.name}  {note}".rstrip(), *(f"bin/{' '.join(command)}" for command in job.commands)]
    remaining = [job for job in jobs if not job.is_done]
    cells = sum(job.kind == "cells" for job in jobs)
    time_left = progress.format_time_left(remaining, durations, processes)
    return "\n".join([*lines, f"{cells:,} cells, {len(remaining):,} of {len(jobs):,} jobs to do; {time_left}"])


class JobRunner:
    """Runs jobs.

    Args:
        jobs: Jobs in their preferred order.
        out: Folder of the study.
        processes: Number of concurrent processes.
        on_cell: Function called after each cell.
    """

    def __init__(self, jobs: Sequence[Job], out: Path, processes: int, on_cell: Callable[[], object]) -> None:
        self._jobs, self._out, self._on_cell = jobs, out, on_cell
        self._processes = processes
        self._durations = DurationEstimator(out)
        self._display = ProgressDisplay(jobs, self._durations, processes)
        self._states: dict[str, JobState] = {job.name: "done" if job.is_done else "waiting" for job in jobs}
        self._core_sets: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
        for cores in _core_sets(processes):
            self._core_sets.put(cores)
        self._children: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._failures: dict[str, str] = {}

    def run(self) -> list[str]:
        """Run all jobs that can run, and return a line for each failure and for the jobs that could not start.

        Raises:
            Interrupted: SIGTERM or Ctrl-C arrived.
        """
        running: dict[Future[str], Job] = {}
        self._display.show(self._states, f"{len(self._jobs):,} jobs")
        with ThreadPoolExecutor(self._processes) as pool, self._forwarding_signals():
            while True:
                free = self._processes - len(running)
                running |= {pool.submit(self._run, job, lock): job for job, lock in self._startable(free)}
                if not running and not any(state == "elsewhere" for state in self._states.values()):
                    break
                ended, _ = concurrent.futures.wait(running, POLL_SECONDS, concurrent.futures.FIRST_COMPLETED)
                if not running:
                    time.sleep(POLL_SECONDS)
                for future in ended:
                    self._record(running.pop(future), future.result())
        if self._stopped:
            raise Interrupted("stopped; the same command resumes")
        return [*self._failures.values(), *self._blocked()]

    def _startable(self, free: int) -> Generator[tuple[Job, filelock.BaseFileLock]]:
        """Yield up to `free` jobs that can start now, locked."""
        for job in self._jobs:
            if self._states[job.name] in ("waiting", "elsewhere") and not self._stopped:
                if job.is_done:
                    self._set_state(job, "done", f"{job.name}: done elsewhere")
                elif free > 0 and job.is_ready and (lock := self._lock(job)):
                    free -= 1
                    self._set_state(job, "running", f"{job.name}: started")
                    yield job, lock

    def _set_state(self, job: Job, state: JobState, event: str) -> None:
        self._states[job.name] = state
        self._display.show(self._states, event)

    def _lock(self, job: Job) -> filelock.BaseFileLock | None:
        """Acquire the job's lock; return None if another shard holds it."""
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
        """Run the job's commands on a set of cores; return the failure, or an empty string."""
        cores = self._core_sets.get()
        try:
            if hasattr(os, "sched_setaffinity"):  # Linux
                os.sched_setaffinity(0, cores)  # of this thread; its child processes inherit the set
            started = time.monotonic()
            for command in job.commands:
                failure = "" if self._stopped else self._run_command(job, command)
                if failure or self._stopped:
                    return failure or "stopped"
            job.clean_up()
            self._durations.add(job, time.monotonic() - started)
            return ""
        finally:
            lock.release()
            self._core_sets.put(cores)

    def _run_command(self, job: Job, command: Sequence[str]) -> str:
        log = self._out / "logs" / f"{job.name.replace('/', '_')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        cache = {"JAX_COMPILATION_CACHE_DIR": str((self._out / "compiled").resolve())}
        with log.open("ab") as file:
            file.write(f"$ bin/{' '.join(command)}\n".encode())
            file.flush()
            child = subprocess.Popen(
                [*paths.program(command[0]), *command[1:]],
                stdout=file,
                stderr=file,
                env={**os.environ, **cache},
                start_new_session=True,  # this process forwards Ctrl-C, as it does SIGTERM
            )
            self._children.add(child)
            code = child.wait()
            self._children.discard(child)
        return f"{job.name}: {_last_line(log)} ({log})" if code else ""

    def _record(self, job: Job, failure: str) -> None:
        if failure and not self._stopped:
            self._failures[job.name] = failure
        self._states[job.name] = "failed" if failure else "done"
        if not failure and job.kind == "cells":
            self._on_cell()
        self._display.show(self._states, failure or f"{job.name}: done")

    def _blocked(self) -> list[str]:
        """Return a line for the jobs whose inputs no job created."""
        waiting = [job for job in self._jobs if self._states[job.name] == "waiting"]
        return [f"{len(waiting)} jobs wait for failed ones, such as {waiting[0].name}"] if waiting else []

    @contextmanager
    def _forwarding_signals(self) -> Generator[None]:
        """Forward SIGTERM and Ctrl-C to the children."""

        def stop(number: int, frame: FrameType | None) -> None:
            self._stopped = True
            print("stopping: trainings save after the current step", file=sys.stderr, flush=True)
            for child in list(self._children):
                child.send_signal(signal.SIGTERM)

        handlers = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _core_sets(processes: int) -> list[set[int]]:
    """Divide the cores equally among processes; with more processes than cores, some get all cores."""
    cores = sorted(_available_cores())
    parts = [set(cores[i::processes]) for i in range(processes)]
    return [part or set(cores) for part in parts]


def _available_cores() -> set[int]:
    """Return the cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"
