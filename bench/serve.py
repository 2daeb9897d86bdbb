"""Measure the service's overhead with a fake network and all other parts real: `python -m bench.serve`.

Cases have about 400 tokens in about 20 messages. The benchmark uses Pythia's tokenizer, 640 templates, events stored in
SQLite, and Poisson arrivals. The generator is pinned to one core; the server may use both. There are two kinds of
requests: in `first` all messages are new to the server; in `further` only the last message is.
"""

import argparse
import itertools
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
from jaxtempl.config import sizes
from jaxtempl.synthetic import generator as synthetic_generator
from jaxtempl.text.tokenizer import Tokenizer

RATES = (20, 200)  # requests/s
AIM = {"p50": 2.0, "p99": 5.0}  # milliseconds
SIZE = "14m"  # Pythia's tokenizer
TOKENS = 400
CONTEXTS, CASES = 15_000, 200  # more contexts than one rate requests; cases of the further requests
KINDS = {"first": "all messages new", "further": "the last message new"}
STAGES = ("read", "wait", "run", "rank", "total")
NOTES = (  # why the latencies exceed the target
    "",
    "**Why the latencies exceed the target.** HTTP, validation and routing run in Python. GET /livez, which does",
    "nothing else, costs a client 0.6 to 0.8 ms here; a suggestion takes the same path, with a body to read and one",
    "to write. The network's thread costs two switches of the interpreter, 0.4 to 0.7 ms; it keeps the event loop",
    "free while a real network computes. A window of new messages is 400 tokens of BPE, about a millisecond; a",
    "continued case adds one message. At 20 requests a second, everything is cold in the processor's caches each",
    "time. At 200 a second, one event loop does all the work and is busy for a third of the time (half of it where",
    "all messages are new): the P99 is the wait for it.",
)
PACKAGES = ("starlette", "uvicorn", "uvloop", "msgspec", "tokenizers", "sqlalchemy", "aiohttp")


def cases(path: Path, kind: str) -> Path:
    """Write cases of one context with about 400 tokens; a number in a message makes it new to the server."""
    made: Any = synthetic_generator.cases(20 * CASES, 1)
    texts = (str(message["text"]) for case in made for message in case["messages"])
    tokenizer = Tokenizer(sizes.tokenizer_path(SIZE))
    bases = [list(_until(texts, tokenizer)) for _ in range(CASES)]
    with path.open("w") as file:
        for number in range(CONTEXTS):
            *older, last = bases[number % CASES]
            older = [f"{number} {text}" for text in older] if kind == "first" else older
            messages = [{"role": "customer", "text": text} for text in [*older, f"{number} {last}"]]
            reply = {"role": "advocate", "text": "."}
            file.write(json.dumps({"case_id": f"c-{number}", "messages": [*messages, reply]}) + "\n")
    return path


def _until(texts: Iterator[str], tokenizer: Tokenizer) -> Iterator[str]:
    total = 0
    while total < TOKENS:
        text = next(texts)
        total += len(tokenizer.encode([" 12345 " + text])[0])
        yield text


def stages(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Return the mean milliseconds of each stage between two scrapes of /metrics."""
    change = {name: after.get(name, 0.0) - before.get(name, 0.0) for name in after}
    key = 'jaxtempl_stage_seconds_{}{{stage="{}"}}'.format
    return {name: 1000 * change[key("sum", name)] / change[key("count", name)] for name in STAGES}


def empty(server: Server, rate: float, seconds: float) -> float:
    """Return the median milliseconds of GET /livez on one open connection: HTTP, validation and a log line only."""
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
    """Return a row for each kind, rate and round."""
    generator = {max(os.sched_getaffinity(0))}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = bundles.write(folder / "bundle", SIZE, "fp32")
        files = {kind: cases(folder / f"{kind}.jsonl", kind) for kind in KINDS}
        with servers.served(bundle, folder, "--backend=fake") as server:
            for _ in range(rounds):
                for kind, rate in itertools.product(KINDS, RATES):
                    before = server.metrics()
                    flags = (f"--rates={rate}", f"--minutes={minutes}", "--warmup=5", f"--contexts={CONTEXTS}")
                    found = servers.load(server, files[kind], folder / "out", *flags, cores=generator)
                    row = {"kind": kind, **found["rates"][0], "stages": stages(before, server.metrics())}
                    rows.append({**row, "empty": empty(server, rate, 5)})
    return rows


def summary(rows: list[dict[str, Any]], kind: str, rate: int) -> dict[str, Any]:
    """Return the medians over the rounds of one kind at one rate."""
    own = [row for row in rows if (row["kind"], row["rate"]) == (kind, rate)]
    latency = {name: statistics.median(row["run"][name] for row in own) for name in ("p50", "p90", "p99", "max")}
    parts = {name: statistics.median(row["stages"][name] for row in own) for name in STAGES}
    parts["empty"] = statistics.median(row["empty"] for row in own)
    return {**latency, **parts, "tokens": statistics.median(row["tokens"] for row in own), "void": _void(own)}


def _void(rows: list[dict[str, Any]]) -> list[str]:
    return [row["void"] for row in rows if row["void"]]


TIMES = {
    "p50": f"P50 (target: {AIM['p50']:g})",
    "p90": "P90",
    "p99": f"P99 (target: {AIM['p99']:g})",
    "max": "maximum",
}
PARTS = {
    "read": "validate JSON, tokenize the window (`read`)",
    "wait": "queue (`wait`)",
    "run": "to the network's thread and back, without computation (`run`)",
    "rank": "rank 640 templates (`rank`)",
    "total": "all of these, and the event loop between them (`total`)",
    "empty": "for comparison: GET /livez, median of a client",
}


def page(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    pairs = list(itertools.product(KINDS, RATES))
    summaries = [results["summary"][f"{kind} {rate}"] for kind, rate in pairs]
    columns = " | ".join(f"{KINDS[kind]}, {rate}/s" for kind, rate in pairs)
    void = [line for each in summaries for line in each["void"]]
    return "\n".join(
        [
            "# What the service adds to the model",
            "",
            "`bin/serve` runs with a network that computes nothing, under load from `bin/loadtest` (Poisson arrivals,",
            f"latency from the intended send time). Cases have about {summaries[0]['tokens']:.0f} tokens in about 20",
            "messages, with Pythia's tokenizer, 640 templates, and suggestions stored in SQLite. The generator is",
            "pinned to one core; the server may use both. Message encodings are cached, so only the last message of a",
            "continued case is tokenized.",
            f"Medians of {results['rounds']} rounds of {results['minutes']:g} minutes each.",
            "Repeat with `python -m bench.serve`.",
            "",
            f"| milliseconds | {columns} |",
            "|---" * (len(pairs) + 1) + "|",
            *[_row(name, [each[key] for each in summaries]) for key, name in TIMES.items()],
            "",
            f"| mean milliseconds of each part | {columns} |",
            "|---" * (len(pairs) + 1) + "|",
            *[_row(name, [each[key] for each in summaries]) for key, name in PARTS.items()],
            "",
            *([f"Rows in which the generator was late: {'; '.join(void)}.", ""] if void else []),
            "The difference between `total` and the client's time is HTTP, the sockets and the client itself.",
            *NOTES,
            "",
            common.describe(results["machine"]),
            "",
        ]
    )


def _row(name: str, values: list[float]) -> str:
    return f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |"


def main() -> None:
    """Measure and write docs/benchmarks/serve.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="minutes of each rate and round (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all rates (default: 3)")
    arguments = parser.parse_args()
    machine = common.machine(PACKAGES)
    rows = measured(arguments.minutes, arguments.rounds)
    results: dict[str, Any] = {
        "machine": machine,
        "minutes": arguments.minutes,
        "rounds": arguments.rounds,
        "rows": rows,
    }
    results["summary"] = {f"{k} {rate}": summary(rows, k, rate) for k, rate in itertools.product(KINDS, RATES)}
    common.write("serve", results, page(results))


if __name__ == "__main__":
    main()
