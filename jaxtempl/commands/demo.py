"""`bin/demo`: the whole path on the embedded model and the package's sample of real cases.

Each stage is a command with the flags that are printed, so a reader can continue from any of them. Labels, updates and
learning rates were chosen on validation cases alone; the test cases are measured once, at the end.
"""

import contextlib
import gzip
import itertools
import json
import os
import re
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxtempl import files
from jaxtempl.commands import adapt, evaluate, finetune, prepare, suggest
from jaxtempl.config import parsing, paths
from jaxtempl.config.evaluation import DemoConfig
from jaxtempl.data.dataset import Dataset
from jaxtempl.errors import UserError
from jaxtempl.evaluation import paired
from jaxtempl.evaluation.paired import PairedDifference
from jaxtempl.evaluation.subject import PAGE, PREDICTIONS, REPORT
from jaxtempl.specs.interval import Interval
from jaxtempl.text.cases import Case

SAMPLE = paths.ASSETS / "star"
REPLAYED = 12  # unseen cases in the console
ADAPT_SHARE = 0.3  # share of the updates of adapt in the time from their start to the end of the demonstration
SPEED_STEPS = range(3, 13)  # updates that show the machine's speed; those before them compile
RESULTS = "demo.json"  # accuracies, differences and seconds
METRICS = {"top1": "top-1", "top3": "top-3", "top5": "top-5"}
STAGES: dict[str, Callable[[Sequence[str]], None]] = {
    "prepare": prepare.main,
    "adapt": adapt.main,
    "finetune": finetune.main,
    "evaluate": evaluate.main,
}


class Amounts(NamedTuple):
    """How much a demonstration computes.

    Attributes:
        cases: Number of cases of the sample.
        rows: Tokens of a packed row.
        updates: Updates of adapt, of 4 rows each.
        labels: Labels of each fine-tuning; adapting gains most where labels and passes over them are few.
        epochs: Passes over the labels.
        window: Tokens of a classifier's window.
        contexts: Contexts that the bundle is verified on.
    """

    cases: int
    rows: int
    updates: int
    labels: int
    epochs: int
    window: int
    contexts: int


FULL = Amounts(cases=1_500, rows=512, updates=400, labels=2_000, epochs=2, window=256, contexts=200)
QUICK = Amounts(cases=60, rows=64, updates=4, labels=64, epochs=1, window=64, contexts=20)


def main(argv: Sequence[str]) -> None:
    """Run `bin/demo`."""
    config = parsing.parse(DemoConfig, argv)
    amounts = QUICK if config.quick else FULL
    out = Path(config.out or ("demo-quick" if config.quick else "demo"))
    out.mkdir(parents=True, exist_ok=True)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # both classifiers and both evaluations have the same shapes
        jax.config.update("jax_compilation_cache_dir", str(out / "compiled"))
    timer = Timer()
    _run_stages(out, amounts, timer)
    results = _results(out)
    files.write_json(out / RESULTS, {"format": 1, "quick": config.quick, "labels": amounts.labels, **results})
    _print_results(results, amounts.labels)
    if config.quick:
        print("\n--quick: a few cases and updates show that every step works. The numbers above mean nothing.")
    with timer.stage("suggest"):
        _show_case(out)
    _serve(out, config.serve, timer)


class Timer:
    """The seconds of each stage, and those since the start."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Record and print the seconds of a stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        print(f"{name}: {self.seconds[name]:.0f} seconds", flush=True)

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start


def _run_stages(out: Path, amounts: Amounts, timer: Timer) -> None:
    """Run all stages up to the bundle."""
    cases = _sample(out, amounts.cases)
    print(f"{amounts.cases:,} real support conversations (STAR, MIT licence): {cases}", flush=True)
    done = threading.Event()
    threading.Thread(target=_print_forecast, args=(out, amounts, timer, done), daemon=True).start()
    for name, command, *flags in _stages(out, cases, amounts):
        print(f"\n$ bin/{command} {' '.join(flags)}", flush=True)
        with timer.stage(name):
            _convert(flags) if command == "convert" else STAGES[command](flags)
    done.set()


def _sample(out: Path, count: int) -> Path:
    """Return the file of the sample, or one of its first `count` cases."""
    whole = SAMPLE / "transcripts.jsonl.gz"
    if count == FULL.cases:
        return whole
    part = out / "transcripts.jsonl"
    with gzip.open(whole, "rt", encoding="utf-8") as lines:
        part.write_text("".join(itertools.islice(lines, count)), encoding="utf-8")
    return part


def _stages(out: Path, cases: Path, amounts: Amounts) -> list[list[str]]:
    """Return the name, the command and the flags of each stage."""
    data, templates = f"--data={out}/data", f"--templates={SAMPLE}/templates.json"
    updates = amounts.labels * amounts.epochs // 16
    labelled = [data, f"--labels={amounts.labels}", f"--epochs={amounts.epochs}", "--batch_size=16",
                "--gradient_accumulation_steps=4", "--learning_rate=2e-3", f"--length={amounts.window}",
                f"--save_every={updates // 2}"]  # fmt: skip
    return [
        ["prepare", "prepare", f"--transcripts={cases}", templates, "--size=nano", f"--length={amounts.rows}",
         "--fractions=0.6,0.1,0.3", "--overwrite", f"--out={out}/data"],
        ["adapt", "adapt", "--size=nano", data, f"--steps={amounts.updates}", "--batch_size=4",
         "--learning_rate=4e-3", f"--save_every={amounts.updates}", f"--out={out}/adapted"],
        ["fine-tune base", "finetune", "--size=nano", *labelled, f"--out={out}/base-classifier"],
        ["fine-tune adapted", "finetune", f"--from={out}/adapted", *labelled, f"--out={out}/adapted-classifier"],
        ["evaluate base", "evaluate", f"--run={out}/base-classifier", "--baselines=false"],
        ["evaluate adapted", "evaluate", f"--run={out}/adapted-classifier"],
        ["convert", "convert", "onnx", f"--run={out}/adapted-classifier", f"--verify_contexts={amounts.contexts}",
         "--overwrite", f"--out={out}/bundle"],
    ]  # fmt: skip


def _convert(flags: Sequence[str]) -> None:
    """Convert the classifier to a bundle, in a separate process: this package does not import the converters."""
    if subprocess.run([*paths.program("convert"), *flags], check=False).returncode:
        raise UserError("bin/convert onnx failed; the line above states why")


def _print_forecast(out: Path, amounts: Amounts, timer: Timer, done: threading.Event) -> None:
    """Print how long the demonstration will take once the first updates of adapt have shown the machine's speed."""
    metrics = out / "adapted" / "metrics.jsonl"
    if metrics.exists():
        return  # the demonstration resumes
    while not done.wait(1):
        lines = [line for line in files.read_lines(metrics) if "seconds" in line and line["step"] in SPEED_STEPS]
        if len(lines) == len(SPEED_STEPS):
            update = sum(line["seconds"] for line in lines) / len(lines)
            rate = sum(line["tokens_per_second"] for line in lines) / len(lines)
            total = timer.total + update * (amounts.updates / ADAPT_SHARE - SPEED_STEPS.stop)
            print(f"At {rate:,.0f} tokens/s, the demonstration takes about {total:.0f} seconds in all.", flush=True)
            return


def _results(out: Path) -> dict[str, Any]:
    """Return the accuracies on the test cases, and the paired differences between them, as JSON has them."""
    folders = {name: out / f"{name}-classifier" / "evaluate-test" for name in ("base", "adapted")}
    reports = {name: files.read_json(folder / REPORT) for name, folder in folders.items()}
    ngrams = reports["adapted"]["baselines"]["ngrams"]
    gain = paired.compare_predictions(folders["adapted"] / PREDICTIONS, folders["base"] / PREDICTIONS)
    accuracies = {
        "n-grams": ngrams["metrics"],
        "base": reports["base"]["metrics"],
        "adapted": reports["adapted"]["metrics"],
    }
    return {
        "counts": reports["adapted"]["counts"],
        "accuracies": {name: {key: metrics[key] for key in METRICS} for name, metrics in accuracies.items()},
        "differences": {
            "adapted minus base": {key: difference._asdict() for key, difference in gain.items()},
            "adapted minus n-grams": ngrams["difference"],
        },
    }


def _print_results(results: Mapping[str, Any], labels: int) -> None:
    """Print the accuracies with their intervals, and the paired differences with their p-values."""
    counts = results["counts"]
    print(f"\n{counts['contexts']:,} replies of {counts['cases']:,} unseen cases; {labels:,} labels for each model.")
    _print_table("Accuracy, with 95 % intervals", results["accuracies"], Interval.from_json)
    title = "Differences in points, paired by reply (p < 0.05: more than chance)"
    _print_table(title, results["differences"], PairedDifference.from_json)


def _print_table(title: str, rows: Mapping[str, Any], read: Callable[[Mapping[str, Any]], object]) -> None:
    print(f"\n{title}:\n\n  {'':22}" + "".join(f"{name:>32}" for name in METRICS.values()))
    for name, entries in rows.items():
        print(f"  {name:22}" + "".join(f"{format(read(entries[key])):>32}" for key in METRICS), flush=True)


def _show_case(out: Path) -> None:
    """Print an unseen case up to a labelled reply and the suggestions for it, and write the cases of the console."""
    dataset = Dataset(out / "data")
    labels, cases = dataset.labels("test"), dataset.cases("test")
    replayed = "".join(json.dumps(_to_dict(case.case_id, case, None)) + "\n" for case in cases[:REPLAYED])
    (out / "unseen.jsonl").write_text(replayed, encoding="utf-8")
    pairs = ((cases[int(case)], int(message)) for case, message in zip(labels.case, labels.message, strict=True))
    case, message = next((c, m) for c, m in pairs if m >= 5 and c.messages[m - 1].role == "customer")
    path = out / "case.json"
    path.write_text(json.dumps(_to_dict("demo", case, message), indent=1, ensure_ascii=False), encoding="utf-8")
    print(f"\nAn unseen case ({path}):\n")
    print("\n".join(f"  {m.role:>9}: {m.text}" for m in case.messages[:message]))
    print(f"\n$ bin/suggest --bundle={out}/bundle {path}", flush=True)
    suggest.main([f"--bundle={out}/bundle", str(path)])
    print(f"The advocate sent {case.messages[message].template}.")


def _to_dict(case_id: str, case: Case, messages: int | None) -> dict[str, Any]:
    """Return the first messages of a case as JSON has them, without labels; None returns all."""
    return {"case_id": case_id, "messages": [{"role": m.role, "text": m.text} for m in case.messages[:messages]]}


def _serve(out: Path, stay: bool, timer: Timer) -> None:
    """Serve the bundle, request one suggestion, and print where everything is; keep the server running if `stay`."""
    flags = [f"--bundle={out}/bundle", f"--store=sqlite:///{out}/events.sqlite", f"--cases={out}/unseen.jsonl"]
    print(f"\n$ bin/serve {' '.join(flags)}", flush=True)
    command = [*paths.program("serve"), *flags, "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            with timer.stage("serve"):
                url = _address(server)
                answer = _request(url, files.read_json(out / "case.json"))
            print(f"The same case over HTTP: {answer['suggestions'][0]['template']} in {answer['latency_ms']:.1f} ms.")
            _print_summary(out, url, timer)
            if stay:
                print("Press Ctrl-C to stop the server.", flush=True)
                server.wait()
            else:
                print("The server has stopped. bin/demo --serve keeps it running, and so does the command above.")
        except KeyboardInterrupt:
            print("\nThe server has stopped.")
        finally:
            server.terminate()


def _print_summary(out: Path, url: str, timer: Timer) -> None:
    """Print the pages, the console's address, what to run next, and the seconds by stage, which RESULTS gets too."""
    taken = {"seconds": timer.seconds, "total": timer.total}
    files.write_json(out / RESULTS, {**files.read_json(out / RESULTS), **taken})
    print("\nPages:")
    print("\n".join(f"  {out}/{name}-classifier/evaluate-test/{PAGE}" for name in ("base", "adapted")))
    print(f"The advocate's console: {url}/console")
    print("\nOn your own transcripts (docs/data.md has their format):")
    print("  bin/prepare --transcripts=transcripts.jsonl.gz --size=nano --length=512")
    print("  bin/adapt --size=nano && bin/finetune --from=runs/adapt-nano")
    print("  bin/evaluate --run=runs/finetune-nano")
    by_stage = ", ".join(f"{name} {value:.0f}" for name, value in timer.seconds.items())
    print(f"\n{timer.total:.0f} seconds: {by_stage}.", flush=True)


def _address(server: "subprocess.Popen[str]") -> str:
    """Return the URL that the server prints when it is ready."""
    for line in server.stdout or ():
        if match := re.search(r"is served at (\S+)", line):
            return match[1]
    raise UserError("the server did not start; run the command above to see why")


def _request(url: str, case: dict[str, Any]) -> dict[str, Any]:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this machine's ports
    with direct.open(urllib.request.Request(f"{url}/v1/suggest", json.dumps(case).encode()), timeout=30) as answer:
        return json.load(answer)
