"""Measure a server under overload, and during reloads and a kill under load.

    python -m bench.overload

A real network runs in ONNX Runtime (70m's shape, int8) on one core, the generator on the other. The capacity is the
answer rate under a much higher request rate. The load is then a minute at capacity, a minute at three times capacity,
and some seconds below it.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import tempfile
import threading
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from bench import bundles, common, servers
from bench.servers import Server

SIZE, DTYPE = "70m", "int8"
FLAGS = ("--queue=8", "--timeout_ms=2000", "--threads=1")
FACTOR = 3  # times the capacity
LONGER = 1.5  # limit of accepted requests, times the P99 at capacity
RELOADS, RELOAD_RATE = 50, 2.0  # a second after the one before, and requests a second meanwhile
KILLS = 2
MESSAGES = [{"role": "customer", "text": "Where is my card?"}]
PACKAGES = ("starlette", "uvicorn", "onnxruntime", "aiohttp")


class Watch:
    """A sampler that reads a server's memory and requests a suggestion every tenth of a second inside its block.

    Attributes:
        memory: MB.
        requests: time in seconds since 1970, status, and milliseconds of each answer.
    """

    def __init__(self, server: Server) -> None:
        self._server, self._ended = server, threading.Event()
        self.memory, self.requests = list[float](), list[tuple[float, int, float]]()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            self.memory.append(self._server.memory)
            began, status = time.time(), 200
            try:
                self._server.post("/v1/suggest", {"case_id": f"watch-{len(self.requests)}", "messages": MESSAGES})
            except urllib.error.HTTPError as error:
                status = error.code
            self.requests.append((began, status, 1000 * (time.time() - began)))


def shed(log: Path) -> list[tuple[float, float]]:
    """Return time in seconds since 1970, and milliseconds, of each 429 in a server's log."""
    lines = (json.loads(line) for line in log.read_text().splitlines() if line.startswith("{"))
    return [
        (datetime.fromisoformat(line["time"]).timestamp(), line["milliseconds"])
        for line in lines
        if line.get("status") == 429
    ]


class Rig:
    """A server on one core, and loads from another."""

    def __init__(self, folder: Path, cases: Path, minutes: float) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self.folder, self.cases, self.minutes = folder, cases, minutes
        self.own, self.other = {cores[0]}, {cores[-1]}

    def served(self, *flags: str, port: int = 0) -> Any:
        """Start a server of the bundle."""
        return servers.served(self.folder / "bundle", self.folder, *flags, cores=self.own, port=port)

    def load(self, server: Server, rate: float, minutes: float, seed: int = 0, warmup: float = 5) -> dict[str, Any]:
        """Return the row of one rate."""
        flags = (f"--rates={rate:g}", f"--minutes={minutes}", f"--warmup={warmup}", f"--seed={seed}")
        return servers.load(server, self.cases, self.folder / "out", *flags, cores=self.other)["rates"][0]


def overloaded(rig: Rig) -> dict[str, Any]:
    """Measure a server at capacity, far above it, and afterwards."""
    with rig.served(*FLAGS) as server:
        tried = rig.load(server, 200, 0.25)
        capacity = tried["answered_rate"]
        at = rig.load(server, capacity, rig.minutes)
        with Watch(server) as watch:
            above = rig.load(server, FACTOR * capacity, rig.minutes, warmup=0)
            time.sleep(5)
        after = rig.load(server, capacity / 3, 0.2, warmup=1)
    refused = shed(rig.folder / "log")
    last = max(when for when, _ in refused)
    since = [(status, took) for when, status, took in watch.requests if when > last + 1]
    return {
        **{"capacity": capacity, "at": at, "above": above, "after": after, "memory_mb": watch.memory},
        "shed_ms": quantiles([took for _, took in refused]),
        "a_second_later": {"requests": len(since), "statuses": sorted({status for status, _ in since})}
        | quantiles([took for _, took in since]),
    }


def quantiles(values: list[float]) -> dict[str, float]:
    """Return the median, the 99th percentile and the maximum."""
    cut = statistics.quantiles(values, n=100)
    return {"p50": cut[49], "p99": cut[98], "max": max(values)}


def reloaded(rig: Rig) -> dict[str, Any]:
    """Measure reloads of bundles under load."""
    with rig.served(*FLAGS) as server, ThreadPoolExecutor(1) as pool:
        loading = pool.submit(rig.load, server, RELOAD_RATE, 3.0)
        took, memory = list[float](), [server.memory]
        for _ in range(RELOADS):
            time.sleep(1)
            began = time.perf_counter()
            server.post("/admin/reload", {})
            took.append(time.perf_counter() - began)
            memory.append(server.memory)
        began = time.perf_counter()
        server.post("/admin/rollback", {})
        back = time.perf_counter() - began
        row = loading.result()
    return {"rate": RELOAD_RATE, "row": row, "seconds": took, "rollback_seconds": back, "memory_mb": memory}


def killed(rig: Rig) -> dict[str, Any]:
    """Measure SIGKILLs and restarts under load."""
    port, row = _free_port(), dict[str, Any]()
    with ThreadPoolExecutor(1) as pool:
        loading = None
        for number in range(KILLS + 1):
            with rig.served(*FLAGS, port=port) as server:
                loading = loading or pool.submit(rig.load, server, 5.0, 0.75)
                time.sleep(8)
                if number < KILLS:
                    server.process.send_signal(signal.SIGKILL)
                else:
                    row = loading.result()
    return {"row": row, "kills": KILLS}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def page(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    over, again, dead = results["overload"], results["reload"], results["kill"]
    at, above, after = over["at"], over["above"], over["after"]
    memory, later, refused = over["memory_mb"], over["a_second_later"], over["shed_ms"]
    ratio = above["run"]["p99"] / at["run"]["p99"]
    errors = sum(again["row"]["errors"].values())
    return "\n".join(
        [
            "# Overload, reloads and kills",
            "",
            f"`bin/serve {' '.join(FLAGS)}` runs {SIZE}'s shape in {DTYPE} with random weights in ONNX Runtime on one",
            "core. `bin/loadtest` runs on the other, with Poisson arrivals. Repeat with `python -m bench.overload`.",
            "",
            f"## Three times the capacity for {results['minutes']:g} minutes",
            "",
            "| | requests/s | answered/s | shed | late | P50, ms | P99, ms | maximum, ms | errors |",
            "|---" * 9 + "|",
            _row("at capacity", at),
            _row(f"{FACTOR} times the capacity", above),
            _row("a third of the capacity, afterwards", after),
            "",
            f"- The P99 of accepted requests is {ratio:.2f} times the P99 at capacity (limit: {LONGER}); the rest are",
            "  shed.",
            f"- A 429 took the server {refused['p50']:.2f} ms (median), {refused['p99']:.2f} ms (P99) and",
            f"  {refused['max']:.1f} ms (maximum); the target is 5 ms.",
            f"- Starting one second after the last 429, {later['requests']} requests, ten a second, were answered",
            f"  with {', '.join(map(str, later['statuses']))} in {later['p50']:.1f} ms (median),",
            f"  {later['p99']:.1f} ms (P99).",
            f"- Memory was {memory[len(memory) // 10]:.0f} MB near the start and {memory[-1]:.0f} MB at the end.",
            "",
            f"## {RELOADS} reloads at {again['rate']:g} requests a second",
            "",
            f"{again['row']['requests']} requests, {again['row']['answered']} answered, {again['row']['shed']} shed,",
            f"{again['row']['late']} late, {errors} failed. A reload took {statistics.median(again['seconds']):.1f} s",
            "(median; the new bundle is verified and warmed up on the core that serves) and the rollback",
            f"{1000 * again['rollback_seconds']:.0f} ms. Memory at the start and after every tenth reload was",
            f"{_few(again['memory_mb'])} MB; two models stay in memory, for a rollback.",
            "",
            f"## {dead['kills']} SIGKILLs and restarts at 5 requests a second",
            "",
            f"{dead['row']['requests']} requests: {dead['row']['answered']} answered; others:"
            f" {_others(dead['row'])}. Invalid answers: {_wrong(dead['row'])}.",
            "tests/test_serve_process.py and tests/test_events.py check that no acknowledged event is lost.",
            "",
            common.describe(results["machine"]),
            "",
        ]
    )


def _few(values: list[float]) -> str:
    return ", ".join(f"{value:.0f}" for value in values[::10])


def _row(name: str, row: dict[str, Any]) -> str:
    run, errors = row["run"], sum(row["errors"].values())
    cells = [f"{row['sent_rate']:.1f}", f"{row['answered_rate']:.1f}", row["shed"], row["late"]]
    cells += [f"{run['p50']:.0f}", f"{run['p99']:.0f}", f"{run['max']:.0f}", errors]
    return f"| {name} | {' | '.join(map(str, cells))} |"


def _others(row: dict[str, Any]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in row["errors"].items()) or "none"


def _wrong(row: dict[str, Any]) -> int:
    return sum(count for kind, count in row["errors"].items() if "answer" in kind)


def main() -> None:
    """Measure and write docs/benchmarks/overload.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=1.0, help="minutes at capacity, and minutes above it (default: 1)"
    )
    arguments = parser.parse_args()
    machine = common.machine(PACKAGES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundles.write(folder / "bundle", SIZE, DTYPE)
        rig = Rig(folder, common.data() / "star" / "dev.jsonl.gz", arguments.minutes)
        results: dict[str, Any] = {"machine": machine, "minutes": arguments.minutes}
        results |= {"overload": overloaded(rig), "reload": reloaded(rig), "kill": killed(rig)}
    common.write("overload", results, page(results))


if __name__ == "__main__":
    main()
