"""`bin/prepare --measure_redaction`: where values are planted, what counts as found, and the demands of issue 20."""

import json
from pathlib import Path

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from jaxtempl.commands import prepare
from jaxtempl.errors import UserError
from jaxtempl.prepare.measure.measure import measure, pooled, wilson
from jaxtempl.prepare.measure.plant import KNOWN, plant
from jaxtempl.text.redaction.policy import Policy

HOSTS = ["Where is my parcel?", "I asked for a refund of 12.50 yesterday.", "ok"]
DEMANDS = {"EMAIL": 0.99, "CARD": 0.99, "IBAN": 0.99, "PHONE": 0.95, "SSN": 0.98, KNOWN: 1.0}  # issue 20, unseen frames
REPORT = measure(Policy(), HOSTS, 40, 1)


def test_planted_values_lie_where_they_are_stated() -> None:
    planted = list(plant(HOSTS, 3, 0))
    assert planted == list(plant(HOSTS, 3, 0)) != list(plant(HOSTS, 3, 1))
    for each in planted:
        assert each.host in each.text
        value = each.text[each.start : each.end]
        assert bool(value.strip()) == bool(each.type)
        assert each.type != KNOWN or each.known == {KNOWN: [value]}
    assert {each.frames for each in planted} == {"seen", "unseen"}


@pytest.mark.parametrize("type_", DEMANDS)
def test_recall_in_unseen_frames_meets_the_demand(type_: str) -> None:
    assert pooled(REPORT, type_, "unseen").value >= DEMANDS[type_]
    assert pooled(REPORT, "PHONE", "unseen", "US").value >= 0.99


def test_names_are_found_in_unseen_frames() -> None:
    """Cues alone find few of them: their authors did not have these sentences in view."""
    assert pooled(REPORT, "NAME", "unseen").value > 0.7


def test_a_type_that_the_policy_leaves_out_has_no_recall_and_no_precision() -> None:
    report = measure(Policy(types=("EMAIL",)), HOSTS, 5, 1)
    assert pooled(report, "NAME", "unseen").value == 0
    assert [(row["type"], row["found"], row["right"]) for row in report["precision"]] == [
        ("EMAIL", 30, 30),
        (KNOWN, 30, 30),
    ]


def test_findings_without_a_planted_value_lower_precision() -> None:
    policy = Policy(types=(), patterns={"WORD": r"\b(?:ticket|order|serial|invoice|tracking|error|Flight|Great)\b"})
    rows = {row["type"]: row for row in measure(policy, HOSTS, 20, 1)["precision"]}
    assert (rows["WORD"]["found"] >= 20, rows["WORD"]["right"]) == (True, 0)


def test_the_intervals_are_wilsons() -> None:
    for found, count in ((95, 100), (0, 7), (20, 20)):
        expected = proportion_confint(found, count, method="wilson")
        np.testing.assert_allclose(wilson(found, count), (found / count, *expected), atol=1e-12)
    assert np.isnan(wilson(0, 0)).all()


def test_the_command_writes_a_report_and_no_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cases.jsonl"
    lines = [{"case_id": str(i), "messages": [{"role": "customer", "text": text}]} for i, text in enumerate(HOSTS)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = [f"--transcripts={path}", "--measure_redaction", "--planted_values=2", f"--out={tmp_path / 'data'}"]
    with pytest.raises(UserError, match="without a policy; pass --redact=default"):
        prepare.main(flags)
    rules = tmp_path / "policy.yaml"
    rules.write_text("types: [EMAIL]\n")
    prepare.main([*flags, f"--redact={rules}"])
    report = json.loads((tmp_path / "data.redaction.json").read_text())
    assert (report["format"], report["kind"], report["messages"]) == (1, "redaction report", 3)
    assert not (tmp_path / "data").exists()
    assert "| EMAIL | 1.000 [" in capsys.readouterr().out
