"""What the service adds to the model: `python -m bench.serve`. The network is replaced by nothing; all else is real.

Cases of 400 tokens in some 20 messages, Pythia's tokenizer, 640 templates, events kept in SQLite; Poisson arrivals. The
generator has one core to itself as far as it goes; the server may use all.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import bundles, common, servers
from bench.servers import Server
from jaxtempl import config, sample
from jaxtempl.tokenizer import Tokenizer

RATES = (20, 200)  # requests/s
AIM = {"p50": 2.0, "p99": 5.0}  # milliseconds
SIZE = "14m"  # Pythia's tokenizer
TOKENS, CASES = 400, 500
STAGES = ("read", "wait", "run", "rank", "total")
PACKAGES = ("starlette", "uvicorn", "uvloop", "msgspec", "tokenizers", "sqlalchemy", "aiohttp")


def cases(path: Path) -> Path:
    """A file of cases whose one context has 400 tokens, or a few more."""
    tokenizer = Tokenizer(config.tokenizer_path(SIZE))
    made: Any = sample.cases(20 * CASES, 1)
    texts = (str(message["text"]) for case in made for message in case["messages"])
    with path.open("w") as file:
        for number in range(CASES):
            said = [{"role": "customer", "text": text} for text in _until(texts, tokenizer)]
            reply = {"role": "advocate", "text": "."}
            file.write(json.dumps({"case_id": f"c-{number}", "messages": [*said, reply]}) + "\n")
    return path


def _until(texts: Iterator[str], tokenizer: Tokenizer) -> Iterator[str]:
    total = 0
    while total < TOKENS:
        text = next(texts)
        total += len(tokenizer.encode([" " + text])[0])
        yield text


def stages(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Mean milliseconds of each stage between two readings of /metrics."""
    change = {name: after.get(name, 0.0) - before.get(name, 0.0) for name in after}
    key = 'jaxtempl_stage_seconds_{}{{stage="{}"}}'.format
    return {name: 1000 * change[key("sum", name)] / change[key("count", name)] for name in STAGES}


def empty(server: Server, rate: float, seconds: float) -> float:
    """Median milliseconds of GET /livez on one kept connection: HTTP, the boundary and a log line, and no more."""
    import http.client

    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    found: list[float] = []
    for _ in range(int(rate * seconds)):
        began = time.perf_counter()
        connection.request("GET", "/livez")
        connection.getresponse().read()
        found.append(1000 * (time.perf_counter() - began))
        time.sleep(1 / rate)
    return statistics.median(found)


def measured(minutes: float, rounds: int) -> list[dict[str, Any]]:
    """A row for each rate and round."""
    generator = {max(os.sched_getaffinity(0))}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle, asked = bundles.write(folder / "bundle", SIZE, "fp32"), cases(folder / "cases.jsonl")
        with servers.served(bundle, folder, "--backend=fake") as server:
            for _ in range(rounds):
                for rate in RATES:
                    before = server.metrics()
                    flags = (f"--rates={rate}", f"--minutes={minutes}", "--warmup=5")
                    found = servers.load(server, asked, folder / "out", *flags, cores=generator)
                    row = found["rates"][0]
                    row["stages"] = stages(before, server.metrics())
                    row["empty"] = empty(server, rate, 5)
                    rows.append(row)
    return rows


def summary(rows: list[dict[str, Any]], rate: int) -> dict[str, Any]:
    """Medians over the rounds at one rate."""
    own = [row for row in rows if row["rate"] == rate]
    told = {name: statistics.median(row["run"][name] for row in own) for name in ("p50", "p90", "p99", "max")}
    parts = {name: statistics.median(row["stages"][name] for row in own) for name in STAGES}
    empty_ = statistics.median(row["empty"] for row in own)
    return {**told, "stages": parts, "empty": empty_, "void": [row["void"] for row in own if row["void"]]}


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    told = {rate: results["summary"][str(rate)] for rate in RATES}
    rates = " | ".join(f"{rate} requests/s" for rate in RATES)
    rows = {
        f"P50 ({AIM['p50']:g} is aimed at)": [told[rate]["p50"] for rate in RATES],
        "P90": [told[rate]["p90"] for rate in RATES],
        f"P99 ({AIM['p99']:g} is aimed at)": [told[rate]["p99"] for rate in RATES],
        "longest": [told[rate]["max"] for rate in RATES],
    }
    parts = {
        "JSON checked, window tokenized (`read`)": [told[rate]["stages"]["read"] for rate in RATES],
        "queue (`wait`)": [told[rate]["stages"]["wait"] for rate in RATES],
        "thread of the network and back, with nothing to compute (`run`)": [
            told[rate]["stages"]["run"] for rate in RATES
        ],
        "ranking of 640 templates (`rank`)": [told[rate]["stages"]["rank"] for rate in RATES],
        "all of these, and the event loop's turns between them (`total`)": [
            told[rate]["stages"]["total"] for rate in RATES
        ],
        "for comparison: GET /livez, a client's median": [told[rate]["empty"] for rate in RATES],
    }
    return "\n".join(
        [
            "# What the service adds to the model",
            "",
            "`bin/serve` with a network that computes nothing, asked by `bin/loadtest` (Poisson arrivals, latency from",
            f"the intended send time): cases of {TOKENS} tokens in some 20 messages, Pythia's tokenizer, 640",
            "templates, suggestions kept in SQLite. The generator is pinned to one core, the server may use both.",
            f"Medians of {results['rounds']} rounds of {results['minutes']:g} minutes.",
            "`python -m bench.serve` repeats it.",
            "",
            f"| milliseconds | {rates} |",
            "|---" * (len(RATES) + 1) + "|",
            *[_row(name, values) for name, values in rows.items()],
            "",
            f"| means of each part, milliseconds | {rates} |",
            "|---" * (len(RATES) + 1) + "|",
            *[_row(name, values) for name, values in parts.items()],
            "",
            *results["notes"],
            "",
            common.described(results["machine"]),
            "",
        ]
    )


def _row(name: str, values: list[float]) -> str:
    return f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |"


def main() -> None:
    """Measures and writes docs/benchmarks/serve.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="of each rate and round (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="of all rates (default: 3)")
    asked = parser.parse_args()
    machine = common.machine(PACKAGES)
    rows = measured(asked.minutes, asked.rounds)
    results: dict[str, Any] = {"machine": machine, "minutes": asked.minutes, "rounds": asked.rounds, "rows": rows}
    results["summary"] = {str(rate): summary(rows, rate) for rate in RATES}
    results["notes"] = ["What lies between `total` and the client's time is HTTP, the sockets and the client itself."]
    common.write("serve", results, page(results))


if __name__ == "__main__":
    main()
