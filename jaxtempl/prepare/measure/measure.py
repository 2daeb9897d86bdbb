"""`prepare --measure_redaction`: strict recall and precision of a policy on values planted into the user's text."""

import dataclasses
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from scipy import stats

from jaxtempl import files
from jaxtempl.config.data import PrepareConfig
from jaxtempl.errors import UserError
from jaxtempl.prepare.measure.plant import KNOWN, PlantedText, plant
from jaxtempl.prepare.redaction import requested_policy
from jaxtempl.specs.interval import Interval
from jaxtempl.text.cases import with_text
from jaxtempl.text.ingest import CaseReader, Quarantine
from jaxtempl.text.redaction.findings import Finding
from jaxtempl.text.redaction.policy import Policy
from jaxtempl.text.redaction.redact import Redactor
from jaxtempl.text.sources import find_files

HOSTS = 5000  # messages that values are planted into
INPUTS = ("transcripts", "train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class RecallRow:
    """Recall of one type.

    Attributes:
        type: Type of the values.
        country: Country of the values.
        frames: `seen` or `unseen`: whether the authors of the rules had the sentences in view.
        planted: Number of values.
        covered: Number of them that findings cover to the last character.
    """

    type: str
    country: str
    frames: str
    planted: int
    covered: int

    @property
    def recall(self) -> Interval:
        """Strict recall with its Wilson interval."""
        return wilson(self.covered, self.planted)


@dataclasses.dataclass(frozen=True)
class PrecisionRow:
    """Precision of one type over all planted texts; what the user's text alone holds is not counted.

    Attributes:
        type: Type of the findings.
        found: Number of findings.
        right: Number of them on a planted value of this type.
    """

    type: str
    found: int
    right: int

    @property
    def precision(self) -> Interval:
        """Precision with its Wilson interval."""
        return wilson(self.right, self.found)


def wilson(successes: int, trials: int) -> Interval:
    """Return a share with its 95 % interval (Wilson, JASA 22, 1927)."""
    if not trials:
        return Interval(float("nan"), float("nan"), float("nan"))
    bounds: Any = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    return Interval(successes / trials, float(bounds.low), float(bounds.high))


def run(config: PrepareConfig) -> None:
    """Measure the policy of a config, write `OUT.redaction.json`, and print its table.

    Raises:
        UserError: No policy or no transcripts are given, or no message has text.
    """
    policy = requested_policy(config)
    if policy is None:
        raise UserError("measure_redaction is given without a policy; pass --redact=default or --redact=FILE")
    hosts = _hosts(config)
    report = files.plain(measure(policy, hosts, config.planted_values, config.seed))
    path = config.out.with_name(f"{config.out.name}.redaction.json")
    files.write_json(path, report)
    print(format_table(report))
    values = f"{config.planted_values} values of each type, country and kind of sentence"
    print(f"{path}: {len(hosts):,} messages of yours, {values}")


def _hosts(config: PrepareConfig) -> list[str]:
    sources = [source for name in INPUTS for path in getattr(config, name) for source in find_files(path)]
    with TemporaryDirectory() as folder:
        cases = CaseReader(Quarantine(Path(folder) / "quarantine.jsonl"), config.label).cases(sources)
        texts = (message.text for case in cases for message in with_text(case.messages))
        hosts = list(itertools.islice(texts, HOSTS))
    if not hosts:
        raise UserError("no message has text; name transcripts with --transcripts or --train")
    return hosts


def measure(policy: Policy, hosts: Sequence[str], count: int, seed: int) -> dict[str, Any]:
    """Return the report of a policy.

    Args:
        policy: Policy to measure.
        hosts: The user's texts.
        count: Number of values of each type, country and kind of frame.
        seed: Seed of the values and their places.
    """
    redactor = Redactor(policy)
    started = time.process_time()
    present = Counter(finding.type for host in hosts for finding in redactor.find(host))
    seconds = time.process_time() - started
    planted = [(each, redactor.find(each.text, each.known)) for each in plant(hosts, count, seed)]
    found = [(each, _added(redactor, each, findings)) for each, findings in planted]
    return {
        "format": files.FORMAT,
        "kind": "redaction report",
        "policy": msgspec.to_builtins(policy),
        "digest": policy.digest,
        "seed": seed,
        "messages": len(hosts),
        "messages_per_cpu_second": round(len(hosts) / max(seconds, 1e-9)),
        "found_in_messages": dict(sorted(present.items())),
        "recall": [dataclasses.asdict(row) | {"recall": row.recall._asdict()} for row in _recall(planted)],
        "precision": [
            dataclasses.asdict(row) | {"precision": row.precision._asdict()} for row in _precision(found, policy)
        ],
    }


def _recall(planted: Iterable[tuple[PlantedText, list[Finding]]]) -> list[RecallRow]:
    tally = defaultdict[tuple[str, str, str], list[bool]](list)
    for each, findings in planted:
        if each.type:
            tally[each.type, each.country, each.frames].append(_is_covered(each, findings))
    return [RecallRow(*key, len(covered), sum(covered)) for key, covered in sorted(tally.items())]


def _is_covered(each: PlantedText, findings: Iterable[Finding]) -> bool:
    hidden = {i for finding in findings for i in range(finding.start, finding.end)}
    return all(i in hidden for i in range(each.start, each.end) if not each.text[i].isspace())


def _added(redactor: Redactor, each: PlantedText, findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that the host alone does not have."""
    present = Counter((f.type, each.host[f.start : f.end]) for f in redactor.find(each.host))
    added = list[Finding]()
    for finding in findings:
        key = (finding.type, each.text[finding.start : finding.end])
        if present[key]:
            present[key] -= 1
        else:
            added.append(finding)
    return added


def _precision(found: Iterable[tuple[PlantedText, list[Finding]]], policy: Policy) -> list[PrecisionRow]:
    total, right = Counter[str](), Counter[str]()
    for each, findings in found:
        for finding in findings:
            total[finding.type] += 1
            is_on_value = finding.start < each.end and each.start < finding.end
            right[finding.type] += is_on_value and finding.type == each.type
    return [PrecisionRow(name, total[name], right[name]) for name in (*policy.types, *policy.patterns, KNOWN)]


def format_table(report: dict[str, Any]) -> str:
    """Return the report as Markdown: recall of each type by frames over all countries, and its precision."""
    precision = {row["type"]: Interval.from_json(row["precision"]) for row in report["precision"]}
    lines = ["| type | recall, seen frames | recall, unseen frames | precision |", "|---|---|---|---|"]
    for name in dict.fromkeys(row["type"] for row in report["recall"]):
        seen, unseen = (pooled(report, name, frames) for frames in ("seen", "unseen"))
        shown = f"{precision[name]:.3f}" if name in precision else "not in the policy"
        lines.append(f"| {name} | {seen:.3f} | {unseen:.3f} | {shown} |")
    return "\n".join([*lines, "", f"{report['messages_per_cpu_second']:,} messages a CPU second"])


def pooled(report: dict[str, Any], type_: str, frames: str, country: str = "") -> Interval:
    """Return the recall of a type over the countries, or in one."""
    rows = [row for row in report["recall"] if (row["type"], row["frames"]) == (type_, frames)]
    chosen = [row for row in rows if not country or row["country"] == country]
    return wilson(sum(row["covered"] for row in chosen), sum(row["planted"] for row in chosen))
