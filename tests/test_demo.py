"""`bin/demo` runs to completion; the test takes minutes."""

import os
import re
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from jaxtempl.config.paths import ROOT


@pytest.mark.slow
def test_the_demo_prints_suggestions_and_scores(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "HF_HUB_OFFLINE": "1",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    command = [str(ROOT / "bin" / "demo"), f"--out={tmp_path}/demo"]
    completed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    printed = completed.stdout
    assert re.search(r"customer: .+", printed)
    shares = [float(share) for share in re.findall(r"^[█ ]* +([\d.]+)%  [A-Z0-9_]+ +\S", printed, re.MULTILINE)]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 100.1
    scores = {name: [float(x) for x in re.findall(r"(\d\.\d+) \[", line)] for name, line in rows(printed).items()}
    assert set(scores) == {"n-grams (linear)", "nano, fine-tuned", "nano, adapted and fine-tuned"}
    assert all(len(values) == 3 and values == sorted(values) for values in scores.values())
    assert min(values[0] for values in scores.values()) > 0.3  # the majority class has a share of one twelfth
    assert (
        printed.index("bin/convert onnx") < printed.index("largest difference") < printed.index("bin/suggest --bundle=")
    )
    url = re.search(r"console: (http://\S+)/console", printed[printed.index("bin/serve --bundle=") :])
    assert url
    assert re.search(r"over HTTP: [A-Z0-9_]+ in [\d.]+ ms", printed)
    with pytest.raises(urllib.error.URLError):  # no server is left running
        urllib.request.urlopen(f"{url[1]}/livez", timeout=5)
    assert (tmp_path / "demo" / "adapted-classifier" / "evaluate-test" / "index.html").is_file()


def rows(printed: str) -> dict[str, str]:
    names = ("n-grams (linear)", "nano, fine-tuned", "nano, adapted and fine-tuned")
    lines = [line.strip() for line in printed.splitlines()]
    return {name: line for name in names for line in lines if line.startswith(f"{name}  ")}
