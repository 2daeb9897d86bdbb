"""Simulated worlds: the export's schema, potential outcomes, planted faults, and estimates that find the truth."""

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxtempl.commands import experiment
from jaxtempl.errors import UserError
from jaxtempl.experiments import checks, estimators, simulate, world
from jaxtempl.experiments.world import World
from jaxtempl.serve.events import export

Row = dict[str, Any]


class Simulated(NamedTuple):
    """Rows of events and of the truth by suggestion."""

    events: list[Row]
    truth: dict[str, Row]

    def choices(self, arms: tuple[str, ...]) -> list[Row]:
        return [row for row in self.events if row["arm"] in arms and row["event"] in ("picked", "searched")]


def run(folder: Path, name: str, **changes: Any) -> Simulated:
    changed = msgspec.structs.replace(world.read(name), **changes)
    count = simulate.simulate(changed, folder / "events.parquet", folder / "truth.parquet")
    truth = pq.read_table(folder / "truth.parquet").to_pylist()
    assert count == len(truth)
    return Simulated(pq.read_table(folder / "events.parquet").to_pylist(), {row["suggestion_id"]: row for row in truth})


@pytest.fixture(scope="module")
def null(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    return run(tmp_path_factory.mktemp("null"), "null", pairs_a_week=700, holdout=0.1)


def indexed(values: list[Any]) -> np.ndarray:
    return np.unique(np.array(values), return_inverse=True)[1]


def test_the_schema_is_that_of_the_export(null: Simulated) -> None:
    assert list(null.events[0]) == export.SCHEMA.names


def test_what_no_experiment_counts_has_nulls(tmp_path: Path) -> None:
    events = run(tmp_path, "null", pairs_a_week=20, weeks=1, holdout=0.0, tests=()).events
    assert {(row["experiment"], row["arm"], row["bucket"]) for row in events} == {(None, None, None)}


def test_events_agree_with_the_truth(null: Simulated) -> None:
    opened = {row["suggestion_id"]: row["event_at"] for row in null.events if row["event"] == "opened"}
    assert opened.keys() == null.truth.keys()
    for row in null.choices(("holdout", "v1", "v2")):
        truth = null.truth[row["suggestion_id"]]
        seconds = (row["event_at"] - opened[row["suggestion_id"]]).total_seconds()
        assert seconds == pytest.approx(truth[f"seconds_{row['arm']}"], abs=2e-6)
        assert row["template"] == truth["taken"] == truth["wanted"]
        shown = row["template"] in row["templates"]
        assert row["event"] == ("picked" if shown else "searched")
        assert row["suggested_position"] == (row["templates"].index(row["template"]) + 1 if shown else None)
        assert len(set(row["templates"]) | set(row["withheld_templates"])) == 5


def test_a_holdout_sees_nothing_and_keeps_what_was_withheld(null: Simulated) -> None:
    held = [row for row in null.events if row["arm"] == "holdout"]
    assert {row["event"] for row in held} <= {"opened", "searched", "freehand"}
    assert all(not row["templates"] and row["reason"] == "holdout" for row in held)
    assert all(len(row["withheld_templates"]) == 5 and row["bucket"] < 0.1 for row in held)
    contained = np.mean([row["template"] in row["withheld_templates"] for row in held if row["event"] == "searched"])
    assert 0.6 < contained < 0.95


def test_the_null_world_passes_the_checks_and_has_no_effect(null: Simulated) -> None:
    pairs = {(row["advocate_id"], row["case_id"]): row["arm"] for row in null.events}
    counts = {arm: list(pairs.values()).count(arm) for arm in ("v1", "v2")}
    assert checks.sample_ratio(counts, {"v1": 0.5, "v2": 0.5}).passed
    rows = null.choices(("v1", "v2"))
    arms = indexed([row["arm"] for row in rows])
    assert checks.reassigned_pairs(indexed([f"{row['advocate_id']} {row['case_id']}" for row in rows]), arms).passed
    times = np.array([null.truth[row["suggestion_id"]][f"seconds_{row['arm']}"] for row in rows])
    found = estimators.difference(
        estimators.sums_by_cluster(times, indexed([row["advocate_id"] for row in rows]), arms)
    )
    assert found.low < 0 < found.high


def test_a_correlation_within_pairs_and_advocates_is_the_worlds(null: Simulated) -> None:
    first = {row["suggestion_id"]: row for row in null.events if row["event"] == "opened"}
    logs = np.array([np.log(null.truth[name]["seconds_holdout"]) for name in first])
    pairs = indexed([f"{row['advocate_id']} {row['case_id']}" for row in first.values()])
    sizes, total = np.bincount(pairs), logs.var()
    means = np.bincount(pairs, logs) / sizes
    within = ((logs - means[pairs]) ** 2).sum() / (len(logs) - len(sizes))
    assert 1 - within / total == pytest.approx(0.30, abs=0.08)
    assert np.sqrt(total) == pytest.approx(0.71, abs=0.06)


def test_a_broken_randomisation_is_found(tmp_path: Path) -> None:
    broken = run(tmp_path, "broken-randomisation", pairs_a_week=2000, picks=3.0)
    rows = broken.choices(("v1", "v2"))
    pairs, arms = indexed([f"{row['advocate_id']} {row['case_id']}" for row in rows]), indexed([r["arm"] for r in rows])
    assert not checks.reassigned_pairs(pairs, arms).passed
    first = np.unique(pairs, return_index=True)[1]
    counts = np.bincount(arms[first]).tolist()
    assert not checks.sample_ratio({"v1": counts[0], "v2": counts[1]}, {"v1": 0.5, "v2": 0.5}).passed
    opened = {row["suggestion_id"] for row in broken.events if row["event"] == "opened"}
    missing = sum(row["suggestion_id"] not in opened for row in rows)
    assert not checks.complete_events(len(rows), missing, 0).passed


def test_advocates_of_the_feedback_world_agree_because_they_saw(tmp_path: Path) -> None:
    feedback = run(tmp_path, "feedback", pairs_a_week=200)
    rows = feedback.choices(("holdout", "treatment"))
    agreed = [(row["arm"], row["template"] in (row["templates"] or row["withheld_templates"])) for row in rows]
    held, shown = (np.mean([found for arm, found in agreed if arm == name]) for name in ("holdout", "treatment"))
    assert shown - held == pytest.approx(0.25 * (1 - held), abs=0.035)
    assert all(feedback.truth[row["suggestion_id"]]["taken"] == row["template"] for row in rows)


def test_the_paper_world_has_the_means_of_table_5_and_the_saving_of_the_paper() -> None:
    paper = world.read("paper")
    savings = {model.version: model.saving for model in paper.models}

    def mean(version: str, week: float) -> float:
        return paper.seconds * (1 - savings[version]) * (1 - paper.learning) ** week

    rows = [(13.78, 13.33), (12.98, 12.52), (11.64, 10.91)]
    for test, expected in zip(paper.tests, rows, strict=True):
        assert [mean(arm, test.week + 0.5) for arm in test.arms] == pytest.approx(expected, abs=0.03)
    life = np.mean([paper.seconds - mean(paper.released(week), week) for week in range(paper.weeks)])
    assert life == pytest.approx(7.38, abs=0.05)
    case = (paper.picks - 1) * (paper.gap_seconds + paper.seconds) + paper.seconds  # from first opening to last reply
    assert life / (case / (paper.picks * (1 - paper.freehand))) == pytest.approx(0.0356, abs=0.0003)


def test_a_simulation_is_reproducible_and_keeps_no_part_of_itself(tmp_path: Path) -> None:
    small = msgspec.structs.replace(world.read("null"), pairs_a_week=20)
    for name in ("a", "b"):
        simulate.simulate(small, tmp_path / name, tmp_path / f"{name}.truth", seed=5)
    assert pq.read_table(tmp_path / "a").equals(pq.read_table(tmp_path / "b"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.truth", "b", "b.truth"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("models: [{version: v1, saving: 0.3}]", "models has none with week: 0"),
        ("models: [{version: v1, saving: 0.3, week: 0}, {version: v1, saving: 0}]", "a version twice"),
        ("pair_correlation: 0.1", "pair_correlation is below advocate_correlation"),
        ("tests: [{arms: [v1, v9], week: 0}]", "the arm 'v9', which is not one of the models"),
        ("tests: [{arms: [v1, v1], week: 0}]", "compares 'v1' with itself"),
        ("tests: [{arms: [v1, v2], week: 0}, {arms: [v1, v2], week: 1}]", "two tests overlap"),
        ("speed: 3", "unknown field `speed`"),
        ("format: 2", "has format 2; this release reads up to 1"),
    ],
)
def test_an_impossible_world_is_refused_in_one_line(change: str, message: str, tmp_path: Path) -> None:
    text = "name: w\nstart: 2026-01-05T00:00:00Z\nweeks: 2\n"
    keys = {"models": "models: [{version: v1, saving: 0, week: 0}, {version: v2, saving: 0}]", "tests": "tests: []"}
    lines = [line for key, line in keys.items() if not change.startswith(key)]
    (tmp_path / "w.yaml").write_text(text + "\n".join([*lines, change]) + "\n")
    with pytest.raises(UserError, match=message) as error:
        world.read(str(tmp_path / "w.yaml"))
    assert "\n" not in str(error.value)


def test_the_command_writes_events_and_truth_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = Path(world.paths.CONFIGS / "worlds" / "null.yaml").read_text() + "pairs_a_week: 20\n"
    (tmp_path / "w.yaml").write_text(text)
    flags = ["simulate", f"--world={tmp_path}/w.yaml", f"--out={tmp_path}/e.parquet"]
    experiment.main(flags)
    rows = pq.read_table(tmp_path / "e.truth.parquet").num_rows
    assert f"{rows} suggestions" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"e\.parquet exists already; --overwrite replaces it"):
        experiment.main(flags)
    experiment.main([*flags, "--overwrite"])


def test_a_world_named_by_its_path_is_read(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_bytes(Path(world.paths.CONFIGS / "worlds" / "null.yaml").read_bytes())
    assert isinstance(world.read(str(tmp_path / "w.yaml")), World)
