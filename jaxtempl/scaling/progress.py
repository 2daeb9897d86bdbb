"""How far a study is: the state of each cell and the time that is left, redrawn on a terminal, else a line a change."""

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

State = Literal["waiting", "running", "elsewhere", "done", "failed"]
TIMES = "seconds.jsonl"  # in a study's folder: how long each job that ended well lasted


class Clock:
    """What jobs last, from those of their kind that are done; kept in the study's folder."""

    def __init__(self, out: Path) -> None:
        self._path = out / TIMES
        self._seen = defaultdict[str, list[tuple[float, float]]](list)
        for line in files.read_lines(self._path):
            self._add(line["kind"], line["work"], line["seconds"])

    def add(self, job: Job, seconds: float) -> None:
        """Notes a job that ended well."""
        self._add(job.kind, job.work, seconds)
        files.append_line(
            self._path, {"job": job.name, "kind": job.kind, "work": job.work, "seconds": round(seconds, 1)}
        )

    def _add(self, kind: str, work: float, seconds: float) -> None:
        self._seen[kind].append((work, seconds))

    def seconds(self, job: Job) -> float | None:
        """That a job will last, by the line through those of its kind that are done; None where there are none."""
        if not self._seen[job.kind]:
            return None
        work, seconds = np.array(self._seen[job.kind]).T
        if len(set(work.tolist())) < 2:
            return float(seconds.mean() * job.work / work[0])
        largest = work.max()
        line, _ = optimize.nnls(np.stack([np.ones_like(work), work / largest], axis=1), seconds)
        return float(line @ [1, job.work / largest])


def left(jobs: Iterable[Job], clock: Clock, processes: int) -> str:
    """Time until these are done, in words."""
    guesses = [clock.seconds(job) for job in jobs]
    known = [guess for guess in guesses if guess is not None]
    if not guesses:
        return "nothing left"
    if not known:
        return "time left not known yet"
    more = " and what is not known yet" if len(known) < len(guesses) else ""
    return f"about {spoken(sum(known) / processes)} left{more}"


def spoken(seconds: float) -> str:
    """A duration in words."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


class Board:
    """Shows the states as they change."""

    def __init__(self, jobs: Sequence[Job], clock: Clock, processes: int) -> None:
        self._jobs, self._clock, self._processes = jobs, clock, processes
        self._drawn = 0

    def show(self, states: Mapping[str, State], said: str) -> None:
        """What has changed, and what it leaves."""
        waiting = [job for job in self._jobs if states[job.name] in ("waiting", "running", "elsewhere")]
        counts = Counter(states[job.name] for job in self._jobs if job.kind == "cells")
        summary = f"cells: {_counted(counts)}; {left(waiting, self._clock, self._processes)}"
        if sys.stderr.isatty():
            self._redraw([*self._table(states), said, summary])
        else:
            print(f"{said}; {summary}", file=sys.stderr, flush=True)

    def _table(self, states: Mapping[str, State]) -> list[str]:
        """The jobs that are not done, as many as the terminal holds, those that run first."""
        order = ("failed", "running", "elsewhere", "waiting")
        rows = [job for state in order for job in self._jobs if states[job.name] == state]
        return [self._line(job, states[job.name]) for job in rows[: shutil.get_terminal_size().lines - 4]]

    def _line(self, job: Job, state: State) -> str:
        guess = self._clock.seconds(job)
        return f"{state:10}{job.name:70.70}{spoken(guess) if guess is not None else '':>12}"

    def _redraw(self, lines: Sequence[str]) -> None:
        up = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""
        print(up + "\n".join(lines), file=sys.stderr, flush=True)
        self._drawn = len(lines)


def _counted(counts: Mapping[str, int]) -> str:
    order = ("done", "running", "elsewhere", "waiting", "failed")
    return ", ".join(f"{counts[state]:,} {state}" for state in order if counts.get(state))
