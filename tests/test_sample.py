"""The package's sample: real cases of STAR's training split, with their licence next to them."""

import gzip
import hashlib
import json
from typing import Any

import pytest

from bench.data import common, sample
from jaxtempl.config.paths import ASSETS
from jaxtempl.text.cases import parse_case

STAR = ASSETS / "star"
DIGEST = "6f4a9be5867a65615e252809f011d90a8ad3a00eeb2365b2d22e24a5983fe2a1"  # SHA-256 of transcripts.jsonl.gz


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    with gzip.open(STAR / "transcripts.jsonl.gz", "rt", encoding="utf-8") as lines:
        return list(map(json.loads, lines))


def test_the_sample_has_1500_cases_of_stars_training_split_in_the_order_of_their_hashes(
    cases: list[dict[str, Any]],
) -> None:
    ids = [case["case_id"] for case in cases]
    assert len(set(ids)) == len(ids) == 1_500
    assert {common.split_of(case_id) for case_id in ids} == {"train"}  # the rule that bench/data/star.py splits by
    assert ids == sorted(ids, key=sample.rank)


def test_the_sample_never_changes_and_is_small() -> None:
    assert hashlib.sha256((STAR / "transcripts.jsonl.gz").read_bytes()).hexdigest() == DIGEST
    assert sum(path.stat().st_size for path in STAR.iterdir()) < 1_000_000


def test_the_sample_holds_roles_texts_and_templates_alone(cases: list[dict[str, Any]]) -> None:
    assert {key for case in cases for key in case} == {"case_id", "messages"}
    assert {key for case in cases for message in case["messages"] for key in message} == {"role", "text", "template"}
    assert all(parse_case(case).messages for case in cases)
    labels = [message["template"] for case in cases for message in case["messages"] if "template" in message]
    assert len(labels) == 11_848
    listed = {template["id"] for template in json.loads((STAR / "templates.json").read_text(encoding="utf-8"))}
    assert sum(label in listed for label in labels) > 0.9 * len(labels)


def test_licence_and_credit_are_next_to_the_sample() -> None:
    text = " ".join((STAR / "README.md").read_text(encoding="utf-8").split())
    for part in ("RasaHQ/STAR", "J. E. M. Mosig, S. Mehri and T. Kober", "2020", "2010.11853", "MIT License"):
        assert part in text
    assert "The above copyright notice and this permission notice shall be included in all copies" in text


def test_the_choice_of_cases_depends_on_their_ids_alone_and_drops_metadata() -> None:
    messages = [{"role": "advocate", "text": "Hi", "template": None, "template2": "x"}]
    cases = [{"case_id": f"star-{i}", "messages": messages, "happy": True} for i in range(sample.CASES + 100)]
    chosen = sample.choose(cases)
    assert chosen == sample.choose(reversed(cases))
    assert len(chosen) == sample.CASES
    assert chosen[0] == {"case_id": chosen[0]["case_id"], "messages": [{"role": "advocate", "text": "Hi"}]}
