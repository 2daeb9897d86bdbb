"""The whole path on the embedded model and synthetic cases, in one process and a few minutes.

Every stage is the command of its name with the flags that are printed, so a reader can go on from any of them.
"""

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxtempl.commands import adapt, evaluate, finetune, prepare, suggest
from jaxtempl.config import parsing
from jaxtempl.config.evaluation import DemoConfig
from jaxtempl.data.dataset import Dataset
from jaxtempl.errors import UserError
from jaxtempl.synthetic import generator

CASES = 1_400
LABELS = 800  # scarce on purpose: adaptation pays most where labels are few
STAGES: dict[str, Callable[[Sequence[str]], None]] = {
    "prepare": prepare.main,
    "adapt": adapt.main,
    "finetune": finetune.main,
    "evaluate": evaluate.main,
}


def main(argv: Sequence[str]) -> None:
    """`bin/demo`."""
    asked = parsing.parse(DemoConfig, argv)
    out = asked.out
    started = time.perf_counter()
    print(f"Synthetic cases of an invented payments company go to {out}/sample", flush=True)
    generator.write(out / "sample", CASES)
    for command, *flags in _stages(out):
        _stage(command, flags)
    _convert(out)
    _show_gain(out)
    _show_case(out)
    print(
        f"\n{time.perf_counter() - started:.0f} seconds. Files: {out}/  (start with the pages named above)", flush=True
    )
    _serve(out, asked.serve)


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


def _stage(command: str, flags: Sequence[str]) -> None:
    print(f"\n$ bin/{command} {' '.join(flags)}", flush=True)
    STAGES[command](flags)


def _convert(out: Path) -> None:
    """The classifier as a bundle; by a process of its own, for nothing in this package knows the converters."""
    flags = [f"--run={out}/adapted-classifier", "--verify_contexts=200", "--overwrite", f"--out={out}/bundle"]
    print(f"\n$ bin/convert onnx {' '.join(flags)}", flush=True)
    if subprocess.run([sys.executable, "-m", "converters", "onnx", *flags], check=False).returncode:
        raise UserError("the bundle could not be made, as the line above says")


def _show_case(out: Path) -> None:
    """One unseen case up to a labelled reply, and what is suggested there."""
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
    """A server of the bundle, asked once; it stays only if it is to."""
    flags = [f"--bundle={out}/bundle", f"--store=sqlite:///{out}/events.sqlite"]
    print(f"\n$ bin/serve {' '.join(flags)}", flush=True)
    command = [sys.executable, "-m", "jaxtempl", "serve", *flags, "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            url = _address(server)
            answer = _asked(url, json.loads((out / "case.json").read_text(encoding="utf-8")))
            print(f"The same case over HTTP: {answer['suggestions'][0]['template']} in {answer['latency_ms']:.1f} ms.")
            print(f"The advocate's console: {url}/console", flush=True)
            if stay:
                print("Ctrl-C ends it.", flush=True)
                server.wait()
            else:
                print("It is closed again; bin/demo --serve leaves it open, and so does the command above.")
        except KeyboardInterrupt:
            print("\nThe server ends.")
        finally:
            server.terminate()


def _address(server: "subprocess.Popen[str]") -> str:
    """Where the server says that it is, once it is ready."""
    found = (re.search(r"is served at (\S+)", line) for line in server.stdout or ())
    ready = next((match for match in found if match), None)
    if ready is None:
        raise UserError("the server did not start; the command above says why")
    return ready[1]


def _asked(url: str, case: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps({"case_id": "demo", **case}).encode()
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not know this machine's ports
    with direct.open(urllib.request.Request(f"{url}/v1/suggest", body), timeout=30) as answer:
        return json.load(answer)


def _show_gain(out: Path) -> None:
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
        print(f"  {name:30}" + "".join(f"{_interval(metrics[key]):>22}" for key in ("top1", "top3", "top5")))


def _interval(metric: dict[str, Any]) -> str:
    return f"{metric['value']:.3f} ({metric['low']:.3f}-{metric['high']:.3f})"
