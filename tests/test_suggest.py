"""The `suggest` command gives the suggestions of the model, as a table or as JSON."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import special
from tiny import language_model, make_run, template

from jaxtempl import cli, files
from jaxtempl.commands import suggest
from jaxtempl.errors import UserError
from jaxtempl.runs.run import Run, resolve
from jaxtempl.text.cases import Message

MESSAGES = [
    {"role": "customer", "text": "hi"},
    {"role": "advocate", "text": "Hello!"},
    {"role": "customer", "text": "my card"},
]
TEMPLATES = [
    template(0, "greet", text="Hello,\nhow <can> I help?"),
    template(1, "old", active=False),
    template(2, "card"),
    template(3, "bye"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("suggest") / "run", TEMPLATES, steps=(3, 5))


@pytest.fixture
def case(tmp_path: Path) -> Path:
    path = tmp_path / "case.json"
    path.write_text(json.dumps({"messages": MESSAGES}))
    return path


def messages() -> list[Message]:
    return [Message(m["role"], m["text"]) for m in MESSAGES]


def expected(made: Run, step: int, temperature: float = 1.0) -> np.ndarray:
    """Return the probabilities at the last token of the joined text, without the retired template."""
    tokens = made.tokenizer.encode(["hi Hello! my card"])[0]
    logits = language_model(made, step)(tokens)[-1] / temperature
    return special.softmax(np.where([True, False, True, True], logits, -np.inf))


def test_a_torn_metrics_file_still_names_the_best_step(made: Run, case: Path, tmp_path: Path, capsys: Any) -> None:
    copy = shutil.copytree(made.folder, tmp_path / "run")
    with (copy / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "validation_lo\n\0\0\0')
    assert resolve(str(copy))[1] == 5
    assert cli.run(suggest.main, [f"--run={copy}@best", str(case), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 5


def test_suggestions_are_the_models_without_retired_templates(made: Run) -> None:
    found = suggest.run_suggester(made, 5).suggest(messages(), 10)
    probability = expected(made, 5)
    assert [s.template for s in found.suggestions] == [TEMPLATES[i].id for i in np.argsort(-probability)[:3]]
    np.testing.assert_allclose([s.probability for s in found.suggestions], np.sort(probability)[:0:-1], rtol=1e-4)
    assert sum(s.probability for s in found.suggestions) == pytest.approx(1)
    assert found.dropped_messages == 0
    assert found.tokens == len(made.tokenizer.encode(["hi Hello! my card"])[0])


def test_k_is_the_number_of_suggestions(made: Run) -> None:
    assert len(suggest.run_suggester(made, 5).suggest(messages(), 2).suggestions) == 2


def test_the_temperature_applies_only_to_the_step_of_its_fit(made: Run) -> None:
    path = made.folder / "calibration.json"
    try:
        files.write_json(path, {"steps": {"3": {"temperature": 2.5, "count": 9}}})
        warm, plain = (
            suggest.run_suggester(made, step).suggest(messages(), 1).suggestions[0].probability for step in (3, 5)
        )
    finally:
        path.unlink()
    assert warm == pytest.approx(expected(made, 3, 2.5).max(), rel=1e-4)
    assert plain == pytest.approx(expected(made, 5).max(), rel=1e-4)


def test_older_messages_that_do_not_fit_are_counted(made: Run) -> None:
    long = [Message("customer", "one two three four five six seven eight nine ten") for _ in range(5)]
    found = suggest.run_suggester(made, 5).suggest(long, 1)
    assert found.dropped_messages > 0
    assert found.tokens <= 32
    one = suggest.run_suggester(made, 5).suggest([Message("customer", "word " * 100)], 1)
    assert (one.tokens, one.dropped_messages) == (32, 0)


def test_the_table_shows_bar_probability_id_and_text(made: Run, case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suggest.main([f"--run={made.folder}", str(case), "--k=3"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert any("%  greet  Hello, how <can> I help?" in line for line in lines)
    assert lines[0].startswith("█")


def test_an_at_sign_in_a_path_is_not_a_step(made: Run, tmp_path: Path) -> None:
    (tmp_path / "a@b").symlink_to(made.folder)
    (tmp_path / "c").mkdir()
    assert (resolve(f"{tmp_path}/a@b@3")[1], resolve(f"{tmp_path}/a@b@last")[1]) == (3, 5)
    assert resolve(f"{tmp_path}/a@b")[0].folder == tmp_path / "a@b"
    for absent in ("x@y", "x@y/run", "c@y/run", "x@y@last"):
        with pytest.raises(UserError, match=f"{tmp_path}/{absent.removesuffix('@last')} is not a run"):
            resolve(f"{tmp_path}/{absent}")
    with pytest.raises(UserError, match="@7 is not a checkpoint; allowed: @last"):
        resolve(f"{tmp_path}/a@b@7")


def test_a_case_is_read_from_standard_input_and_printed_as_json(
    made: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"case_id": "x", "messages": MESSAGES})))
    suggest.main([f"--run={made.folder}@3", "--json", "-"])
    value = json.loads(capsys.readouterr().out)
    assert value["run"] == str(made.folder)
    assert (value["format"], value["step"], value["dropped_messages"]) == (1, 3, 0)
    assert set(value["suggestions"][0]) == {"template", "text", "probability"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[", "is not JSON"),
        ("[]", "an object is allowed"),
        ("{}", "has no 'messages'"),
        ('{"format": "email", "messages": 1}', "'messages' is a number"),
        ('{"messages": [{"role": "boss", "text": "x"}]}', "unknown role"),
        ('{"messages": [{"role": "customer", "text": " "}]}', "no message has text"),
    ],
)
def test_a_wrong_case_is_reported_in_one_line(
    made: Run, case: Path, content: str, said: str, capsys: Any, monkeypatch: Any
) -> None:
    case.write_text(content)
    for path in (str(case), "-"):
        monkeypatch.setattr("sys.stdin", io.StringIO(content))
        assert cli.run(suggest.main, [f"--run={made.folder}", path]) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_a_wrong_run_or_flag_is_reported_in_one_line(made: Run, case: Path, tmp_path: Path, capsys: Any) -> None:
    adapted = make_run(tmp_path / "adapted", [])
    retired = make_run(tmp_path / "retired", [template(0, "old", active=False)])
    for run, code, said in [
        (adapted.folder, 1, "is an adapt run"),
        (retired.folder, 1, "are retired"),
        (tmp_path / "none", 1, "is not a run"),
        (f"{made.folder}@4", 1, "is not a checkpoint"),
    ]:
        assert cli.run(suggest.main, [f"--run={run}", str(case)]) == code
        assert said in capsys.readouterr().err
    assert cli.run(suggest.main, [str(case)]) == 2
    assert cli.run(suggest.main, [f"--run={made.folder}", str(case), "--k=0"]) == 2
    assert cli.run(suggest.main, [f"--run={made.folder}", str(tmp_path / "missing.json")]) == 1
    assert cli.run(suggest.main, [f"--run={made.folder}", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {tmp_path}: Is a directory"
