"""Measure the paper's Table 4 on this machine's CPU: `python -m bench.table4`.

Models with random weights run in float32 and int8 in ONNX Runtime on all cores. `bin/loadtest` sends contexts of star
at the paper's rates. The paper measured each rate for five minutes. `--minutes` sets the duration, and the page states
it.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import bundles, classifiers, common, servers

SIZES, DTYPES = ("nano", "70m", "160m", "410m"), ("fp32", "int8")
RATES = (1, 2, 5, 10, 20)
BUDGET = 100  # milliseconds
FLAGS = ("--timeout_ms=2000", "--max_batch_size=1")
PACKAGES = ("onnxruntime", "tokenizers", "starlette", "uvicorn", "aiohttp")

Report = dict[str, Any]


def measured(size: str, dtype: str, minutes: float, operations: float) -> Report:
    """Return the report of one bundle; the roofline is of float32 products, so int8 has none."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = bundles.write(folder / "bundle", size, dtype)
        cases = common.data() / "star" / "dev.jsonl.gz"
        rates = ",".join(map(str, RATES))
        flags = [f"--rates={rates}", f"--minutes={minutes}", "--warmup=5", f"--budget_ms={BUDGET}"]
        flags += [f"--flops={operations}"] if dtype == "fp32" else []
        with servers.served(bundle, folder, *FLAGS) as server:
            return servers.load(server, cases, folder / "out", *flags)


def speed() -> float:
    """Return the operations a second of one large float32 product in ONNX Runtime on all cores."""
    multiply = classifiers.product(len(os.sched_getaffinity(0)))
    taken = list[float]()
    for _ in range(5):
        began = time.perf_counter()
        multiply(np.zeros((1, 1), np.int32))
        taken.append(time.perf_counter() - began)
    return 2 * classifiers.PRODUCT**3 / min(taken)


def page(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    reports = results["reports"]
    return "\n".join(
        [
            "# Latency under load on a CPU: the paper's Table 4",
            "",
            f"`bin/serve {' '.join(FLAGS)}` runs in ONNX Runtime on all cores, with the generator on the same",
            "machine, random weights, contexts of star and Poisson arrivals. Each rate was measured for",
            f"{results['minutes']:g} minutes (the paper: five).",
            "A cell has the latency of answered requests in milliseconds, from the intended send time: average of the",
            "worst minute, P99 and maximum of the whole run. A percentage followed by `not` is the share of requests",
            "that were not answered, because the queue was too long for an answer within 2 s (shed immediately).",
            f"**Bold**: P99 is within {BUDGET} ms and all requests are answered.",
            "Repeat with `python -m bench.table4`.",
            "",
            "| | " + " | ".join(f"{rate}/s" for rate in RATES) + f" | P99 within {BUDGET} ms up to | roofline, ms |",
            "|---" * (len(RATES) + 3) + "|",
            *[_row(report) for report in reports],
            "",
            "The roofline is the time of all products of the padded windows at",
            f"{results['operations_per_second'] / 1e9:,.0f} G operations a second, the speed of ONNX Runtime in one",
            "float32 product on all cores.",
            "",
            "For comparison, the paper's results on an A10 with TensorRT in fp16: 410m 15 / 35 / 47 at 20/s, 1.4b",
            "33 / 80 / 116 at 10/s, 2.8b 46 / 71 / 72 at 1/s. This machine has no GPU.",
            "",
            common.describe(results["machine"]),
            "",
        ]
    )


def _row(report: Report) -> str:
    model, best = report["model"], report["capacity"]["p99"]
    floor = f"{report['floor']['ms']:.1f}" if report["floor"] else ""
    cells = [_cell(row) for row in report["rates"]]
    return f"| {model['size']} {model['dtype']} | {' | '.join(cells)} | {f'{best:g}/s' if best else 'none'} | {floor} |"


def _cell(row: dict[str, Any]) -> str:
    if row["void"] or not row["run"]:
        return "void" if row["void"] else "none answered"
    times = f"{row['peak_minute']['average']:.0f} / {row['run']['p99']:.0f} / {row['run']['max']:.0f}"
    left = 1 - row["answered"] / row["requests"]
    if left:
        return f"{times}, {left:.0%} not"
    return f"**{times}**" if row["run"]["p99"] <= BUDGET else times


def main() -> None:
    """Measure each bundle, and rewrite docs/benchmarks/table4.{json,md} after it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="minutes of each rate (default: 5)")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": common.machine(PACKAGES), "minutes": arguments.minutes, "reports": []}
    results["operations_per_second"] = speed()
    for size in SIZES:
        for dtype in DTYPES:
            report = measured(size, dtype, arguments.minutes, results["operations_per_second"])
            results["reports"].append(report)
            common.save("table4", results, page(results))
    print(page(results))


if __name__ == "__main__":
    main()
