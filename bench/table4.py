"""Measure the paper's Table 4 on this machine's CPU: `python -m bench.table4`.

Sizes with random weights, float32 and int8, in ONNX Runtime on all cores, loaded by `bin/loadtest` with contexts of
star at the paper's rates. The paper measured each rate for five minutes; here --minutes says how long, and so does the
page.
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
    """The report of one bundle; its floor is that of float32 products, so int8 has none."""
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
    """Operations a second of one large float32 product in ONNX Runtime on all cores."""
    multiply = classifiers.product(len(os.sched_getaffinity(0)))
    taken = list[float]()
    for _ in range(5):
        began = time.perf_counter()
        multiply(np.zeros((1, 1), np.int32))
        taken.append(time.perf_counter() - began)
    return 2 * classifiers.PRODUCT**3 / min(taken)


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    reports = results["reports"]
    return "\n".join(
        [
            "# Latency under load on a CPU: the paper's Table 4",
            "",
            f"`bin/serve {' '.join(FLAGS)}` with ONNX Runtime on all cores, the generator on the same machine; random",
            f"weights, contexts of star, Poisson arrivals, {results['minutes']:g} minutes a rate (the paper: five).",
            "Milliseconds: average of the worst minute, P99 and longest of the whole run, as an answered request saw",
            "them, from when it was to be sent; and the share of requests that were not answered (shed at once, as the",
            f"queue was too long for an answer within 2 s). **Bold** keeps P99 within {BUDGET} ms and answers all.",
            "`python -m bench.table4` repeats it.",
            "",
            "| | " + " | ".join(f"{rate}/s" for rate in RATES) + f" | P99 within {BUDGET} ms up to | floor |",
            "|---" * (len(RATES) + 3) + "|",
            *[_row(report) for report in reports],
            "",
            f"The floor is of all products at the {results['operations_per_second'] / 1e9:,.0f} G operations a second",
            "that ONNX Runtime reaches in one float32 product on all cores, for the windows as padded.",
            "",
            "The paper's, on an A10 with TensorRT in fp16, for comparison: 410m 15 / 35 / 47 at 20/s, 1.4b 33 / 80 /",
            "116 at 10/s, 2.8b 46 / 71 / 72 at 1/s. No GPU was at hand here.",
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
    parser.add_argument("--minutes", type=float, default=5.0, help="of each rate (default: 5)")
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
