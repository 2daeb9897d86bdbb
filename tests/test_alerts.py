"""The alerts for Prometheus fire on what they are for, and on nothing else: `promtool test rules` evaluates them."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from deploy_files import DEPLOY
from require import missing

RULES = DEPLOY / "prometheus" / "alerts.yaml"
CASES = Path(__file__).parent / "alerts.test.yaml"


def promtool(folder: Path, rules: str, cases: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    if program is None:
        missing("promtool")
    (folder / "alerts.yaml").write_text(rules)
    (folder / "cases.yaml").write_text(cases.replace("../deploy/prometheus/alerts.yaml", "alerts.yaml"))
    return subprocess.run(
        [str(program), "test", "rules", "cases.yaml"], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_alerts_fire_on_their_cases(tmp_path: Path) -> None:
    done = promtool(tmp_path, RULES.read_text(), CASES.read_text())
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    alerts = {rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
    cases = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == alerts


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        ("absent(jaxtempl_model_info)", "jaxtempl_model_info == 0"),
        ('status="500"', 'status="501"'),
        ("min(jaxtempl_store_available) < 1", "max(jaxtempl_store_available) < 1"),
        ("- min_over_time(jaxtempl_store_dropped[1h])", ""),
    ],
)
def test_a_wrong_rule_is_detected(tmp_path: Path, rule: str, wrong: str) -> None:
    assert rule in RULES.read_text()
    assert promtool(tmp_path, RULES.read_text().replace(rule, wrong), CASES.read_text()).returncode == 1
