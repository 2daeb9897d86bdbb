"""`bin/demo`: the whole path on the embedded model and synthetic cases, in about ten minutes on two cores.

Each stage is a command with the flags that are printed, so a reader can continue from any of them.
"""

import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxtempl.commands import adapt, evaluate, finetune, prepare, suggest
from jaxtempl.config import parsing, paths
from jaxtempl.config.evaluation import DemoConfig
from jaxtempl.data.dataset import Dataset
from jaxtempl.errors import UserError
from jaxtempl.specs.interval import Interval
from jaxtempl.synthetic import generator

CASES = 1_400
LABELS = 800  # few on purpose: adapting gains most when labels are scarce
STAGES: dict[str, Callable[[Sequence[str]], None]] = {
    "prepare": prepare.main,
    "adapt": adapt.main,
    "finetune": finetune.main,
    "evaluate": evaluate.main,
}


def main(argv: Sequence[str]) -> None:
    """Run `bin/demo`."""
    config = parsing.parse(DemoConfig, argv)
    out = config.out
    started = time.perf_counter()
    print(f"Synthetic cases of an invented payments company go to {out}/sample", flush=True)
    generator.write(out / "sample", CASES)
    for command, *flags in _stages(out):
        _run_stage(command, flags)
    _convert(out)
    _show_gain(out)
    _show_case(out)
    seconds = time.perf_counter() - started
    print(f"\n{seconds:.0f} seconds. Files: {out}/ (start with the pages named above)", flush=True)
    _serve(out, config.serve)


def _stages(out: Path) -> list[list[str]]:
    labelled = [
        f"--data={out}/data",
        f"--labels={LABELS}",
        "--epochs=5",
        "--batch_size=16",
        "--gradient_accumulation_steps=4",
        "--length=256",
    ]
    return [
        ["prepare", f"--transcripts={out}/sample/transcripts.jsonl.gz", f"--templates={out}/sample/templates.json",
         "--size=nano", "--length=512", "--fractions=0.7,0.1,0.2", "--overwrite", f"--out={out}/data"],
        ["adapt", "--size=nano", f"--data={out}/data", "--epochs=1.5", "--batch_size=4", f"--out={out}/adapted"],
        ["finetune", "--size=nano", *labelled, f"--out={out}/base-classifier"],
        ["finetune", f"--from={out}/adapted", *labelled, f"--out={out}/adapted-classifier"],
        ["evaluate", f"--run={out}/base-classifier", f"--data={out}/data", "--baselines=false"],
        ["evaluate", f"--run={out}/adapted-classifier", f"--data={out}/data"],
    ]  # fmt: skip


def _run_stage(command: str, flags: Sequence[str]) -> None:
    print(f"\n$ bin/{command} {' '.join(flags)}", flush=True)
    STAGES[command](flags)


def _convert(out: Path) -> None:
    """Convert the classifier to a bundle, in a separate process: this package does not import the converters."""
    flags = [f"--run={out}/adapted-classifier", "--verify_contexts=200", "--overwrite", f"--out={out}/bundle"]
    print(f"\n$ bin/convert onnx {' '.join(flags)}", flush=True)
    if subprocess.run([*paths.program("convert"), "onnx", *flags], check=False).returncode:
        raise UserError("bin/convert onnx failed; the line above states why")


def _show_case(out: Path) -> None:
    """Print an unseen case up to a labelled reply, and the suggestions for it."""
    dataset = Dataset(out / "data")
    labels = dataset.labels("test")
    cases = dataset.cases("test")
    pairs = ((cases[int(case)], int(message)) for case, message in zip(labels.case, labels.message, strict=True))
    case, message = next((c, m) for c, m in pairs if m >= 5 and c.messages[m - 1].role == "customer")
    record = {"messages": [{"role": m.role, "text": m.text} for m in case.messages[:message]]}
    path = out / "case.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
    print(f"\nAn unseen case ({path}):\n")
    print("\n".join(f"  {m.role:>9}: {m.text}" for m in case.messages[:message]))
    print(f"\n$ bin/suggest --bundle={out}/bundle {path}", flush=True)
    suggest.main([f"--bundle={out}/bundle", str(path)])
    print(f"The advocate sent {case.messages[message].template}.")


def _serve(out: Path, stay: bool) -> None:
    """Serve the bundle and request one suggestion; keep the server running if `stay`."""
    flags = [f"--bundle={out}/bundle", f"--store=sqlite:///{out}/events.sqlite"]
    print(f"\n$ bin/serve {' '.join(flags)}", flush=True)
    command = [*paths.program("serve"), *flags, "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            url = _address(server)
            answer = _request(url, json.loads((out / "case.json").read_text(encoding="utf-8")))
            print(f"The same case over HTTP: {answer['suggestions'][0]['template']} in {answer['latency_ms']:.1f} ms.")
            print(f"The advocate's console: {url}/console", flush=True)
            if stay:
                print("Press Ctrl-C to stop it.", flush=True)
                server.wait()
            else:
                print("The server has stopped. bin/demo --serve keeps it running, and so does the command above.")
        except KeyboardInterrupt:
            print("\nThe server has stopped.")
        finally:
            server.terminate()


def _address(server: "subprocess.Popen[str]") -> str:
    """Return the URL that the server prints when it is ready."""
    for line in server.stdout or ():
        if match := re.search(r"is served at (\S+)", line):
            return match[1]
    raise UserError("the server did not start; run the command above to see why")


def _request(url: str, case: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps({"case_id": "demo", **case}).encode()
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this machine's ports
    with direct.open(urllib.request.Request(f"{url}/v1/suggest", body), timeout=30) as answer:
        return json.load(answer)


def _show_gain(out: Path) -> None:
    """Print the accuracy of n-grams and of both classifiers, with intervals."""
    reports = {
        name: json.loads((out / f"{name}-classifier/evaluate-test/report.json").read_text(encoding="utf-8"))
        for name in ("base", "adapted")
    }
    rows = {
        "n-grams (linear)": reports["adapted"]["baselines"]["ngrams"]["metrics"],
        "nano, fine-tuned": reports["base"]["metrics"],
        "nano, adapted and fine-tuned": reports["adapted"]["metrics"],
    }
    print(f"\nUnseen cases, {LABELS} labels each, with 95 % intervals (where they overlap, neither is ahead):\n")
    print(f"  {'':30}" + "".join(f"{name:>22}" for name in ("top-1", "top-3", "top-5")))
    for name, metrics in rows.items():
        print(
            f"  {name:30}"
            + "".join(f"{format(Interval.from_json(metrics[key])):>22}" for key in ("top1", "top3", "top5"))
        )
