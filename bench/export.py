"""The cost of `bin/convert onnx` at 410m and 1.4b: seconds, peak memory, nodes and bytes, with random weights.

    python -m bench.export [SIZE ...]

Each conversion is a separate process, and another writes the run. 1.4b in float32 needs about 20 GB of memory.
"""

import dataclasses
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import common
from jaxtempl.bundle import onnx_check
from jaxtempl.bundle.bundle import Bundle
from jaxtempl.config.converting import ConvertOnnxConfig
from jaxtempl.config.data import PrepareConfig
from jaxtempl.config.sizes import read_size, tokenizer_path
from jaxtempl.models import factory
from jaxtempl.runs import run
from jaxtempl.specs.architecture import NeoXArchitecture
from jaxtempl.synthetic import generator
from jaxtempl.text.cases import Template

SIZES = ("410m", "1.4b")
DTYPES = ("fp32", "fp16")
CONTEXTS = 32
TEMPLATES = 500


def make(folder: Path, size: str) -> None:
    """Write a finetune run with random weights, and a dataset of synthetic cases."""
    from jaxtempl.prepare import pipeline

    generator.write(folder / "sample", 400)
    pipeline.run(
        PrepareConfig(transcripts=(f"{folder}/sample/transcripts.jsonl.gz",), size="nano", out=folder / "data")
    )
    a = NeoXArchitecture(**read_size(size)["architecture"])
    templates = [Template(i, f"T{i}", f"Reply {i}", True, False, 1) for i in range(TEMPLATES)]
    tokenizer = tokenizer_path(size).read_text(encoding="utf-8")
    facts = {"phase": "finetune", "size": size, "length": 512, "role_tags": False, "datasets": {f"{folder}/data": ""}}
    made = run.create(folder / "run", "", a, tokenizer, templates, facts)
    made.checkpoints.save(1, "study", factory.random_params(a, TEMPLATES, 0), None, {"step": 1})
    made.checkpoints.wait()


def convert(folder: Path, size: str, dtype: Any) -> dict[str, Any]:
    """Measure a whole conversion."""
    from converters.onnx import export

    out = folder / dtype
    started = time.perf_counter()
    export.main(ConvertOnnxConfig(run=f"{folder}/run", dtype=dtype, verify_contexts=CONTEXTS, out=out))
    seconds = time.perf_counter() - started
    return {"size": size, "dtype": dtype, "seconds": seconds, **_peak(), **described(Bundle.open(out))}


def write(folder: Path, size: str, dtype: Any) -> dict[str, Any]:
    """Measure writing the graph, without verification."""
    from converters.onnx import export
    from converters.onnx import graph as onnx_graph
    from converters.onnx.layers import GraphOptions

    found, step = run.resolve(f"{folder}/run")
    (folder / "graph").mkdir(exist_ok=True)
    params = found.params(step)
    started = time.perf_counter()
    options = GraphOptions("template", dtype)
    export.save(onnx_graph.build(params, found.architecture, options), folder / "graph")
    return {"size": size, "dtype": dtype, "seconds": time.perf_counter() - started, **_peak()}


def _peak() -> dict[str, float]:
    return {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


def described(bundle: Bundle) -> dict[str, Any]:
    """Return nodes, bytes and verify figures of a bundle."""
    nodes = sum(1 for _ in onnx_check.nodes(onnx_check.load_graph(bundle.model).graph))
    sizes = {name: known["bytes"] for name, known in bundle.manifest["files"].items() if name.startswith("model")}
    return {"nodes": nodes, "bytes": sizes, "verify": dict(bundle.manifest["verify"])}


def measure(size: str) -> list[dict[str, Any]]:
    """Measure every type of one size."""
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=common.ROOT / "runs") as folder:
        common.output_of("bench.export", "make", folder, size)
        for dtype in DTYPES:
            graph = common.run_child("bench.export", "write", folder, size, dtype)
            whole = common.run_child("bench.export", "convert", folder, size, dtype)
            results.append(whole | {"graph": {key: graph[key] for key in ("seconds", "peak_gb")}})
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    return results


def page(results: dict[str, Any]) -> str:
    """Render the results as Markdown."""
    lines = [
        "# Cost of an export",
        "",
        f"`bin/convert onnx` of random weights with {TEMPLATES} templates. Each conversion runs in a separate process "
        f"and is verified on {CONTEXTS} contexts of synthetic cases (the default is 1,000), 8 from each length bucket.",
        "",
        "| size | type | write graph | peak | convert and verify | peak | nodes | model files | largest difference |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in results["exports"]),
        "",
        "Both peaks of memory include the run's float32 parameters, and memory that stays allocated "
        "(bin/environment.sh). "
        "The weights of a model above 2 GB are written one at a time; a smaller model is one message in memory. "
        "The second peak also includes Flax, and ONNX Runtime's session with its packed copies. The last column is "
        "the largest difference between two logits, followed by the largest logit.",
        "",
        common.describe(results["machine"]),
    ]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    files = " + ".join(
        f"{bytes_ / 1e9:.2f} GB" if bytes_ > 1e7 else f"{bytes_ / 1e6:.1f} MB" for bytes_ in row["bytes"].values()
    )
    verify = row["verify"]
    return (
        f"| {row['size']} | {row['dtype']} | {row['graph']['seconds']:.0f} s | {row['graph']['peak_gb']:.1f} GB | "
        f"{row['seconds']:.0f} s | {row['peak_gb']:.1f} GB | {row['nodes']} | {files} | "
        f"{verify['largest_difference']:.1e} of {verify['largest_logit']:.2f} |"
    )


def main(argv: list[str]) -> None:
    """Measure all sizes, or the named ones; or run one step of one size in this process."""
    steps = {"make": make, "write": write, "convert": convert}
    if argv and argv[0] in steps:
        print(json.dumps(steps[argv[0]](Path(argv[1]), *argv[2:]), default=dataclasses.asdict))
        return
    (common.ROOT / "runs").mkdir(exist_ok=True)
    machine = common.machine(["jax", "onnx", "onnx-ir", "onnxruntime", "numpy"])
    exports = [row for size in argv or SIZES for row in measure(size)]
    results = {"machine": machine, "contexts": CONTEXTS, "exports": exports}
    common.write("export", results, page(results))


if __name__ == "__main__":
    main(sys.argv[1:])
