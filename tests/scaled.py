"""A study's results that are made by known laws, in no time."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxtempl.scaling import results
from jaxtempl.scaling.study import architecture_of
from jaxtempl.specs import flops

SIZES = ("nano-0.6m", "nano-0.9m", "nano-1.3m", "nano-1.9m")
STEPS = [75, 150, 225, 300, 375, 450, 525, 600]


def domain_loss(n: float, d: float, weight: float) -> float:
    return 0.5 + 30 / n**0.35 + 300 / (d * max(weight, 0.2)) ** 0.4


def loss(n: float, d: float, f: float) -> float:
    return 0.3 + 150 / (n**0.25 * f**0.35) + 200 / d**0.5


def row(
    size: str, step: int, labels: int = 4000, corpus: str = "domain", seed: int = 0, **changes: Any
) -> dict[str, Any]:
    """A cell's, its figures by laws with a noise of 0.2 %."""
    a = architecture_of(size)
    n, d = flops.parameter_count(a, embeddings=False), step * 8192
    noise = np.exp(np.random.default_rng([step, labels, seed, len(size), n % 97]).normal(0, 0.002, 4))
    weight = {"domain": 1.0, "half": 0.5, "other": 0.0}[corpus]
    own = loss(n, max(d, 1e5), labels) * noise[0]
    start = "adapted" if step else "base"
    found: dict[str, Any] = {
        **dict.fromkeys(results.COLUMNS),
        "study": "made",
        "cell": f"{size}_{corpus}-{step}_{labels}_{seed}",
        "variant": "",
        "family": "gpt_neox",
        "size": size,
        "seed": seed,
        "parameters": flops.parameter_count(a),
        "parameters_body": n,
        "start": start,
        "corpus": corpus if step else "",
        "domain_weight": weight if step else None,
        "adapt_step": step,
        "adapt_steps": STEPS[-1],
        "finished": True,
        "tokens": d,
        "unique_tokens": 2_000_000 if step else None,
        "flops_all": 6.0 * flops.parameter_count(a) * d,
        "flops_body": 6.0 * n * d,
        "flops_exact": 7.0 * n * d,
        "domain_loss": domain_loss(n, d or 2e5, weight) * noise[1],
        "general_loss": (3.0 + 0.5 * weight * (d / 1e6) ** 0.3) * noise[2],
        "labels": labels,
        "epochs": 3.0,
        "contexts": 1000,
        "seconds": 10.0,
        "loss": own,
        **{f"top{k}": 1 - own / (3 * k) * noise[3] for k in (1, 3, 5)},
    }
    for name in ("loss", *results.TOP):
        found |= {f"{name}_low": found[name] - 0.01, f"{name}_high": found[name] + 0.01}
    return found | changes


def made() -> list[dict[str, Any]]:
    rows = [row(size, step) for size in SIZES for step in (0, *STEPS)]
    rows += [
        row(size, step, labels) for size in SIZES for step in (0, 600) for labels in (500, 1000, 2000, 8000, 16000)
    ]
    rows += [row(size, 600, labels) for size in SIZES for labels in (250, 32000, 64000)]
    rows += [row(size, step, corpus=corpus) for size in SIZES for step in (150, 600) for corpus in ("half", "other")]
    rows += [row(size, 600, seed=1) for size in SIZES]
    return rows


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, results.SCHEMA), folder / results.FILE)
    return folder
