"""Measure what experiments cost a request: the holdout, and a shadow that computes requests again.

    python -m bench.exposure

One server has a holdout of half of the pairs, and a shadow that computes a tenth of the requests again. A client sends
each request a moment after the answer to the one before it, so that the server has no rest, and a shadow computes while
the next request does. Chance decides for each request whether its pair is held out, and whether the one before it is
computed again, so other load on the machine affects all kinds of requests equally.
"""

import argparse
import http.client
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench import bundles, common, servers
from bench.servers import Server
from jaxtempl.serve.experiments.assignment import bucket
from jaxtempl.synthetic import generator

SIZE, DTYPE = "14m", "fp32"
SALT, HELD = "bench", 0.5  # salt and share of the holdout
SHADOWED = 0.1  # share of the shadow: few, so that it is idle before most of them
PAUSE = 0.005  # seconds from an answer to the next request
MESSAGES = 12  # of a case
WARMUP = 100  # requests
BLOCK, DRAWS = 50, 2_000  # consecutive requests that the bootstrap draws together; its draws
QUANTILES = (0.5, 0.95)
PACKAGES = ("onnxruntime", "starlette", "uvicorn", "numpy")


class Timed(NamedTuple):
    """A request's milliseconds, whether its pair is held out, and whether a shadow follows the request before it."""

    ms: float
    held: bool
    shadowed: bool


class Comparison(NamedTuple):
    """Two kinds of requests: their names, and which kind a request is."""

    names: tuple[str, str]
    is_second: Callable[[Timed], bool]


COMPARISONS: Mapping[str, Comparison] = {
    "shadow": Comparison(("without a shadow", "a shadow computes"), lambda row: row.shadowed),
    "holdout": Comparison(("shown", "held out"), lambda row: row.held),
}


def requests(server: Server, count: int) -> list[Timed]:
    """Send requests one after the other, and return their times."""
    made: Any = generator.cases(200, 3)
    cases = [[{"role": m["role"], "text": m["text"]} for m in case["messages"][:MESSAGES]] for case in made]
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    rows, shadowed = list[Timed](), False
    for number in range(count):
        pair = {"advocate_id": "bench", "case_id": f"c{number}"}
        messages = [*cases[number % len(cases)], {"role": "customer", "text": f"number {number}"}]
        time.sleep(PAUSE)
        began = time.perf_counter()
        connection.request("POST", "/v1/suggest", json.dumps({**pair, "messages": messages}))
        answer = json.loads(connection.getresponse().read())
        held = bucket(SALT, **pair) < HELD
        assert held == (answer["suggestions"] == []), answer
        rows.append(Timed(1000 * (time.perf_counter() - began), held, shadowed))
        shadowed = int(answer["suggestion_id"][:8], 16) < SHADOWED * 2**32
    return rows[WARMUP:]


def measured(count: int) -> tuple[list[Timed], dict[str, float]]:
    """Return the requests, and the shadow's numbers by outcome."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        network = bundles.write(folder / "bundle", SIZE, DTYPE)
        shadow = {"bundle": str(network), "share": SHADOWED}
        content = {"holdout": {"salt": SALT, "share": HELD}, "shadow": shadow}
        (folder / "experiments.yaml").write_text(json.dumps(content))  # JSON is YAML
        flags = (f"--experiments={folder / 'experiments.yaml'}", "--timeout_ms=20000")
        with servers.served(network, folder, *flags) as server:
            rows = requests(server, WARMUP + count)
            metrics = server.metrics()
    outcomes = ("computed", "dropped", "failed")
    return rows, {name: metrics[f'jaxtempl_shadow_total{{outcome="{name}"}}'] for name in outcomes}


def compared(rows: list[Timed], is_second: Callable[[Timed], bool], q: float) -> dict[str, Any]:
    """Return a quantile of both kinds, and the ratio of the second with its 95 % bootstrap interval."""
    blocks = [rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)]
    times = [[[row.ms for row in block if is_second(row) == second] for block in blocks] for second in (False, True)]

    def quantiles(drawn: np.ndarray) -> list[float]:
        return [float(np.quantile(np.concatenate([kind[i] for i in drawn]), q)) for kind in times]

    random, everything = np.random.default_rng(0), np.arange(len(blocks))
    draws = np.array([quantiles(random.choice(everything, len(blocks))) for _ in range(DRAWS)])
    first, second = quantiles(everything)
    interval = np.quantile(draws[:, 1] / draws[:, 0], [0.025, 0.975]).tolist()
    return {"first": first, "second": second, "ratio": second / first, "interval": interval}


def table(results: dict[str, Any], name: str) -> list[str]:
    """Return the table of a comparison."""
    lines = ["", f"| milliseconds | {' | '.join(COMPARISONS[name].names)} | ratio |", "|---|---|---|---|"]
    for q in QUANTILES:
        found = results["compared"][name][str(q)]
        low, high = found["interval"]
        ratio = f"{found['ratio']:.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"| P{100 * q:g} | {found['first']:.1f} | {found['second']:.1f} | {ratio} |")
    return lines


def page(results: dict[str, Any]) -> str:
    """Render the results as Markdown."""
    shadow = results["shadow"]
    return "\n".join(
        [
            "# What experiments cost a request",
            "",
            f"`bin/serve` computes {SIZE}'s shape with random weights in ONNX Runtime, for {results['requests']:,}",
            f"requests that follow one another, each {1000 * PAUSE:g} ms after the answer before it. Half of the pairs",
            "are held out. The shadow computes a tenth of the requests again, while the next one computes. Chance",
            "decides for each, so other load on the machine affects both kinds equally. A ratio has a 95 % interval",
            f"by bootstrap over blocks of {BLOCK} requests. Repeat with `python -m bench.exposure`.",
            *table(results, "shadow"),
            *table(results, "holdout"),
            "",
            f"The shadow computed {shadow['computed']:,.0f} requests, dropped {shadow['dropped']:,.0f} that it could",
            f"not follow, and failed on {shadow['failed']:,.0f}. It has one thread, on cores that no other wants.",
            "",
            common.describe(results["machine"]),
            "",
        ]
    )


def main() -> None:
    """Measure and write docs/benchmarks/exposure.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000, help="requests (default: 10,000)")
    given = parser.parse_args()
    machine = common.machine(PACKAGES)
    rows, shadow = measured(given.requests)
    figures = {
        name: {str(q): compared(rows, comparison.is_second, q) for q in QUANTILES}
        for name, comparison in COMPARISONS.items()
    }
    results = {"machine": machine, "requests": given.requests, "compared": figures, "shadow": shadow}
    common.write("exposure", results, page(results))


if __name__ == "__main__":
    main()
