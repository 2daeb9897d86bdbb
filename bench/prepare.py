"""Speed of `prepare` against the tokenizers library on the same text, and its memory as the corpus grows.

    JAXTEMPL_DATA=data python -m bench.prepare

The ratio compares whole runs of `prepare` (reading, validating, splitting, tokenizing, packing, writing) with
`encode_batch` alone on the texts that the rows hold, already in memory. Each is a separate process; they alternate.
Memory is the peak resident size of a process that prepares star's training side once and ten times over.
"""

import argparse
import gzip
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bench import common
from jaxtempl.config.data import PrepareConfig
from jaxtempl.config.sizes import tokenizer_path
from jaxtempl.data.dataset import Dataset
from jaxtempl.prepare import pipeline
from jaxtempl.text.formats import document

SETS = ("star/train", "sgd/train", "taskmaster4/train", "multidogo/train")  # absent ones are skipped
PACKAGES = ("tokenizers", "tensorflow-datasets", "array-record", "numpy")
BATCHES = (1024, 1 << 30)  # texts a call of the library; the faster of the two is compared
GROWTH = (1, 10)


def seconds(action: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def seconds_to_prepare(out: str, *paths: str) -> float:
    """Return the time of a second run, so that the files are in memory as the library's texts are."""
    config = PrepareConfig(train=paths, out=Path(out), overwrite=True)
    pipeline.run(config)
    return seconds(lambda: pipeline.run(config))


def seconds_to_encode(out: str, batch: str) -> float:
    """Return the library's time for the texts of a dataset, with `batch` texts a call."""
    texts, size = texts_of(Dataset(Path(out))), int(batch)
    tokenizer = Tokenizer.from_file(str(tokenizer_path("")))
    starts = range(0, len(texts), size)
    return seconds(lambda: [len(tokenizer.encode_batch(texts[i : i + size])) for i in starts])


def peak_to_prepare(out: str, path: str) -> float:
    """Return the peak resident MB (VmHWM, as the peak that getrusage reports of a child starts at its parent's)."""
    pipeline.run(PrepareConfig(train=(path,), out=Path(out)))
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def texts_of(dataset: Dataset) -> list[str]:
    """Return the texts in the rows of a dataset."""
    return [document(case.messages) for split in ("train", "validation") for case in dataset.cases(split)]


def alone(function: Callable[..., float], *arguments: str) -> float:
    """Return the value of a function in a child process, started as the commands start theirs."""
    python = f"import sys; from bench import prepare; print(prepare.{function.__name__}(*sys.argv[1:]))"
    command = ["sh", "-c", '. bin/environment.sh; exec "$python" -c "$@"', "bin/prepare", python, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=common.ROOT)
    return float(done.stdout.splitlines()[-1])


def speed(paths: tuple[str, ...], folder: Path, repeats: int) -> dict[str, Any]:
    """Return the seconds of both, run in turn, and the ratio of the medians."""
    out = str(folder / "data")
    whole: list[float] = []
    library: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    for _ in range(repeats):
        whole.append(alone(seconds_to_prepare, out, *paths))
        for batch, taken in library.items():
            taken.append(alone(seconds_to_encode, out, str(batch)))
    best = min(library.values(), key=statistics.median)
    dataset = Dataset(Path(out))
    texts = texts_of(dataset)
    size = sum(len(text.encode()) for text in texts)
    return {
        "cases": len(texts),
        "text_mb": size / 1e6,
        "tokens": sum(dataset.manifest["counts"]["tokens"].values()),
        "prepare_seconds": whole,
        "encode_batch_seconds": best,
        "prepare_mb_a_second": size / 1e6 / statistics.median(whole),
        "encode_batch_mb_a_second": size / 1e6 / statistics.median(best),
        "ratio": statistics.median(best) / statistics.median(whole),
        "ratios": [b / w for b, w in zip(best, whole, strict=True)],
    }


def grown(source: Path, times: int) -> Iterator[str]:
    """Yield the lines of star's training side `times` times, each copy with its own case_ids and first messages."""
    for copy in range(times):
        with gzip.open(source, "rt") as lines:
            for line in lines:
                record = json.loads(line)
                record["case_id"] += f"-{copy}"
                record["messages"][0]["text"] += f" ({copy})"
                yield json.dumps(record) + "\n"


def memory(source: Path, folder: Path) -> list[dict[str, Any]]:
    """Return the peak resident MB of a child process for each size."""
    rows: list[dict[str, Any]] = []
    for times in GROWTH:
        path, out = folder / f"x{times}.jsonl", folder / f"x{times}"
        with path.open("w") as file:
            cases = sum(file.write(line) > 0 for line in grown(source, times))
        peak = alone(peak_to_prepare, str(out), str(path))
        rows.append({"times": times, "cases": cases, "input_mb": path.stat().st_size / 1e6, "peak_mb": peak})
    return rows


def page(results: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    quick, rows = results["speed"], results["memory"]
    sizes = "\n".join(f"| {r['times']} | {r['cases']:,} | {r['input_mb']:.0f} | {r['peak_mb']:.0f} |" for r in rows)
    return f"""# prepare

{common.describe(results["machine"])}

Whole runs of `prepare` on {", ".join(results["sets"])} ({quick["cases"]:,} cases, {quick["text_mb"]:.1f} MB of text,
{quick["tokens"] / 1e6:.1f} M tokens) against the tokenizers library's `encode_batch` on the same text in memory.
Each is a separate process, and they alternate; medians of {results["repeats"]} runs.

| | MB of text a second |
|---|---|
| `prepare`, the whole run | {quick["prepare_mb_a_second"]:.2f} |
| `encode_batch` alone | {quick["encode_batch_mb_a_second"]:.2f} |
| ratio | {quick["ratio"]:.2f} ({min(quick["ratios"]):.2f} to {max(quick["ratios"]):.2f}) |

Peak memory of a process that prepares star's training split once, and repeated ten times:

| times | cases | input, MB | peak memory, MB |
|---|---|---|---|
{sizes}

Repeat with `JAXTEMPL_DATA=FOLDER python -m bench.prepare`.
"""


def main() -> None:
    """Measure, and write docs/benchmarks/prepare.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (default: 5)")
    repeats = parser.parse_args().repeats
    data, machine = common.data(), common.machine(PACKAGES)
    sets = [name for name in SETS if (data / f"{name}.jsonl.gz").exists()]
    with tempfile.TemporaryDirectory() as folder:
        quick = speed(tuple(str(data / name) for name in sets), Path(folder), repeats)
        rows = memory(data / "star" / "train.jsonl.gz", Path(folder))
    results: dict[str, Any] = {"machine": machine, "repeats": repeats, "sets": sets, "speed": quick, "memory": rows}
    common.write("prepare", results, page(results))


if __name__ == "__main__":
    main()
