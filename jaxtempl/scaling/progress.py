"""The progress of a study: job states and time left, redrawn on a terminal, otherwise one line for each change."""

import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import optimize

from jaxtempl import files
from jaxtempl.scaling.jobs import Job

JobState = Literal["waiting", "running", "elsewhere", "done", "failed"]
DURATIONS = "seconds.jsonl"  # in a study's folder: the duration of each completed job
DISPLAY_ORDER: tuple[JobState, ...] = ("failed", "running", "elsewhere", "waiting")
SUMMARY_ORDER: tuple[JobState, ...] = ("done", "running", "elsewhere", "waiting", "failed")


class DurationEstimator:
    """Estimates durations from completed jobs of the same kind, which it keeps in the study's folder.

    Args:
        out: Folder of the study.
    """

    def __init__(self, out: Path) -> None:
        self._path = out / DURATIONS
        self._completed = defaultdict[str, list[tuple[float, float]]](list)
        for line in files.read_lines(self._path):
            operations = line["operations"] if "operations" in line else line["work"]  # `work` in format 1
            self._completed[line["kind"]].append((operations, line["seconds"]))

    def add(self, job: Job, seconds: float) -> None:
        """Record a completed job."""
        self._completed[job.kind].append((job.operations, seconds))
        files.append_line(
            self._path,
            {"job": job.name, "kind": job.kind, "operations": job.operations, "seconds": round(seconds, 1)},
        )

    def estimate(self, job: Job) -> float | None:
        """Return the estimated seconds of a job, linear in its operations; None before any of its kind completes."""
        if not self._completed[job.kind]:
            return None
        operations, seconds = np.array(self._completed[job.kind]).T
        if len(set(operations.tolist())) < 2:
            return float(seconds.mean() * job.operations / operations[0])
        largest = operations.max()
        line, _ = optimize.nnls(np.stack([np.ones_like(operations), operations / largest], axis=1), seconds)
        return float(line @ [1, job.operations / largest])


def format_time_left(jobs: Iterable[Job], durations: DurationEstimator, processes: int) -> str:
    """Format the time until the jobs are done."""
    estimates = [durations.estimate(job) for job in jobs]
    estimated = [seconds for seconds in estimates if seconds is not None]
    if not estimates:
        return "nothing left"
    if not estimated:
        return "time left unknown"
    more = " plus jobs of unknown duration" if len(estimated) < len(estimates) else ""
    return f"about {format_duration(sum(estimated) / processes)} left{more}"


def format_duration(seconds: float) -> str:
    """Format a duration for readers."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


class ProgressDisplay:
    """Shows job states as they change.

    Args:
        jobs: Jobs in the order in which they start.
        durations: Estimator of the time left.
        processes: Number of concurrent processes.
    """

    def __init__(self, jobs: Sequence[Job], durations: DurationEstimator, processes: int) -> None:
        self._jobs, self._durations, self._processes = jobs, durations, processes
        self._drawn_lines = 0

    def show(self, states: Mapping[str, JobState], event: str) -> None:
        """Show an event and the time left."""
        remaining = [job for job in self._jobs if states[job.name] in ("waiting", "running", "elsewhere")]
        counts = Counter(states[job.name] for job in self._jobs if job.kind == "cells")
        time_left = format_time_left(remaining, self._durations, self._processes)
        summary = f"cells: {_format_counts(counts)}; {time_left}"
        if sys.stderr.isatty():
            self._redraw([*self._table(states), event, summary])
        else:
            print(f"{event}; {summary}", file=sys.stderr, flush=True)

    def _table(self, states: Mapping[str, JobState]) -> list[str]:
        """Return the lines of the jobs that are not done, as many as fit on the terminal."""
        jobs = [job for state in DISPLAY_ORDER for job in self._jobs if states[job.name] == state]
        return [self._line(job, states[job.name]) for job in jobs[: shutil.get_terminal_size().lines - 4]]

    def _line(self, job: Job, state: JobState) -> str:
        seconds = self._durations.estimate(job)
        return f"{state:10}{job.name:70.70}{format_duration(seconds) if seconds is not None else '':>12}"

    def _redraw(self, lines: Sequence[str]) -> None:
        up = f"\x1b[{self._drawn_lines}F\x1b[J" if self._drawn_lines else ""
        print(up + "\n".join(lines), file=sys.stderr, flush=True)
        self._drawn_lines = len(lines)


def _format_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[state]:,} {state}" for state in SUMMARY_ORDER if counts.get(state))
