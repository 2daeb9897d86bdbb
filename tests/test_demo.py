"""`bin/demo` runs to completion: with `--quick`, and in the slow tests whole, which takes minutes."""

import json
import re
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from children import environment

from jaxtempl.config.paths import ROOT

NUMBER = r"-?\+?\d+\.\d+"


def run_demo(out: Path, *flags: str) -> str:
    """Return what the demonstration prints without a network."""
    offline = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    xla = {} if "--quick" in flags else {"XLA_FLAGS": ""}  # the whole demo computes for longer than it compiles
    command = [str(ROOT / "bin" / "demo"), f"--out={out}", *flags]
    completed = subprocess.run(command, env=environment() | offline | xla, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def rows(printed: str) -> dict[str, list[tuple[float, ...]]]:
    """Return the values with their intervals of each row of the two tables."""
    names = ("n-grams", "base", "adapted", "adapted minus base", "adapted minus n-grams")
    value = re.compile(rf"({NUMBER}) \[({NUMBER}), ({NUMBER})\]")
    lines = {name: re.search(rf"^  {name} {{2,}}(.*\].*)$", printed, re.MULTILINE) for name in names}
    return {name: [tuple(map(float, v)) for v in value.findall(line[1])] for name, line in lines.items() if line}


def check_path(printed: str, out: Path) -> None:
    """Check that every stage ran and printed its part, in order."""
    found = rows(printed)
    assert set(found) == {"n-grams", "base", "adapted", "adapted minus base", "adapted minus n-grams"}
    assert all(len(values) == 3 for values in found.values())
    assert all(low <= value <= high for values in found.values() for value, low, high in values)
    for other in ("base", "n-grams"):
        three = zip(found[f"adapted minus {other}"], found["adapted"], found[other], strict=True)
        assert all(gain[0] == pytest.approx(100 * (ours[0] - theirs[0]), abs=0.15) for gain, ours, theirs in three)
    stored = json.loads((out / "demo.json").read_text())
    assert stored["accuracies"]["adapted"]["top1"]["value"] == pytest.approx(found["adapted"][0][0], abs=5e-4)
    assert sum(stored["seconds"].values()) <= stored["total"]
    shares = [float(share) for share in re.findall(r"^[█ ]* +([\d.]+)%  \w+ +\S", printed, re.MULTILINE)]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    parts = ("bin/prepare", "bin/adapt", "bin/finetune", "bin/evaluate", "bin/convert onnx", "largest difference",
             "unseen cases; ", "bin/suggest --bundle=", "The advocate sent", "bin/serve --bundle=", "over HTTP: ",
             "Pages:", "console: http", "On your own transcripts", "seconds: prepare ")  # fmt: skip
    positions = [printed.index(part) for part in parts]
    assert positions == sorted(positions)
    url = re.search(r"console: (http://\S+)/console", printed)
    assert url
    with pytest.raises(urllib.error.URLError):  # no server is left running
        urllib.request.urlopen(f"{url[1]}/livez", timeout=5)
    for name in ("base", "adapted"):
        assert (out / f"{name}-classifier" / "evaluate-test" / "index.html").is_file()


def test_the_quick_demo_takes_the_same_path_and_states_that_its_numbers_mean_nothing(tmp_path: Path) -> None:
    printed = run_demo(tmp_path / "demo", "--quick")
    check_path(printed, tmp_path / "demo")
    assert printed.index("unseen cases; ") < printed.index("The numbers above mean nothing.")
    assert "learning_rate:" not in printed  # `--verbose` alone prints a resolved config
    assert "gate_contexts" not in printed
    assert len((tmp_path / "demo" / "unseen.jsonl").read_text().splitlines()) == 12
    assert '"template"' not in (tmp_path / "demo" / "unseen.jsonl").read_text()


@pytest.mark.slow
def test_the_demo_shows_that_adapting_gains_on_unseen_cases(tmp_path: Path) -> None:
    printed = run_demo(tmp_path / "demo")
    check_path(printed, tmp_path / "demo")
    assert re.search(r"^At [\d,]+ tokens/s, the demonstration takes about \d+ seconds in all\.$", printed, re.MULTILINE)
    assert "mean nothing" not in printed
    found = rows(printed)
    assert min(found[name][0][0] for name in ("n-grams", "base", "adapted")) > 0.5  # the majority class has 0.07
    assert found["adapted minus base"][0][1] > 0
