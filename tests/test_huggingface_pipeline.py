"""transformers' pipeline gives a converted run's own probabilities, of both families, and training starts from it."""

from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from transformers import pipeline

from converters.huggingface import export
from jaxtempl import files
from jaxtempl.commands import suggest
from jaxtempl.config import sizes
from jaxtempl.config.training import FinetuneConfig
from jaxtempl.errors import UserError
from jaxtempl.models import factory
from jaxtempl.parallel.mesh import MeshShape, make_mesh
from jaxtempl.runs import run
from jaxtempl.runs.run import Run
from jaxtempl.specs.architecture import BertArchitecture
from jaxtempl.text.cases import Message
from jaxtempl.training import initialization

TEMPLATES = [tiny.template(slot, name, active=name != "card") for slot, name in enumerate(tiny.REPLIES)]
TEMPERATURE = 2.5
BERT = BertArchitecture(layers=1, hidden=16, heads=2, feed_forward=32, vocabulary=30522, positions=64)


def bert_run(folder: Path) -> Run:
    """Create a BERT run with random weights, biases included, scaled so that the probabilities differ."""
    facts = {"phase": "finetune", "size": "bert-tiny", "seed": 0, "length": 32, "role_tags": False, "labels": 0}
    facts |= {"datasets": {}, "start": {"weights": "random"}}
    tokenizer = sizes.tokenizer_path("bert-tiny").read_text()
    made = run.create(folder, "size: bert-tiny\nbatch: 4\n", BERT, tokenizer, TEMPLATES, facts)
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: 4 * np.asarray(leaf) + random.normal(0, 0.5, leaf.shape).astype(np.float32),
        factory.random_params(BERT, len(TEMPLATES), 0),
    )
    made.checkpoints.save(3, "study", params, None, {"step": 3})
    made.checkpoints.wait()
    (folder / "metrics.jsonl").write_text("")
    return made


@pytest.fixture(scope="module", params=["gpt_neox", "bert"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("pipeline") / "run"
    made = bert_run(folder) if request.param == "bert" else tiny.make_run(folder, TEMPLATES, scale=8)
    files.write_json(folder / "calibration.json", {"steps": {"3": {"temperature": TEMPERATURE}}})
    return made


@pytest.fixture(scope="module")
def converted(source: Run) -> Path:
    out = source.folder.with_name("converted")
    export.convert(source, 3, out)
    return out


def test_the_pipeline_gives_the_runs_suggestions(source: Run, converted: Path) -> None:
    classify = pipeline("text-classification", model=str(converted), tokenizer=str(converted))
    suggester = suggest.run_suggester(source, 3)
    for texts in (["my card"], ["hi", "Hello!", "my card has not come"], ["a [MASK] or <|endoftext|> typed by hand"]):
        expected = suggester.suggest([Message("customer", text) for text in texts], 9).suggestions
        actual = classify(" ".join(texts), top_k=None)
        assert [entry["label"] for entry in actual] == [suggestion.template for suggestion in expected]
        assert [entry["score"] for entry in actual] == pytest.approx([s.probability for s in expected], abs=1e-5)
        assert "card" not in [entry["label"] for entry in actual]
        assert actual[0]["score"] > actual[-1]["score"] + 0.01, "the temperature must matter"
    (long,) = classify(" ".join(["hi"] * 99), truncation=True)
    assert long["label"] == suggester.suggest([Message("customer", " ".join(["hi"] * 99))], 1).suggestions[0].template


def test_the_manifest_maps_classes_to_slots(source: Run, converted: Path) -> None:
    manifest = files.read_json(converted / "manifest.json")
    assert (manifest["slots"], manifest["temperature"]) == ([0, 1, 3], TEMPERATURE)


def test_training_starts_from_the_body_and_draws_a_head_of_all_slots(source: Run, converted: Path) -> None:
    """The divided head is not read, so its temperature is not applied to what is trained from it."""
    init = initialization.resolve_init(FinetuneConfig(weights=str(converted), data=Path("none")))
    mesh = make_mesh(MeshShape(1, 1, 1))
    drawn, again = (initialization.initial_params(init, len(TEMPLATES), seed, mesh) for seed in (0, 1))
    body = {part: leaves for part, leaves in source.params(3).items() if part != "head"}
    jax.tree.map(np.testing.assert_array_equal, {part: drawn[part] for part in body}, body)
    assert drawn["head"]["kernel"].shape[1] == len(TEMPLATES)
    assert not np.array_equal(drawn["head"]["kernel"], again["head"]["kernel"])


def test_a_run_without_active_templates_is_not_converted(tmp_path: Path) -> None:
    source = tiny.make_run(tmp_path / "run", [tiny.template(0, "old", active=False)])
    with pytest.raises(UserError, match=r"all templates of .* are retired; set one active"):
        export.convert(source, 3, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
