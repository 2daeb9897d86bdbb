"""A tokenizer with an id that the embedding lacks is refused wherever weights meet a tokenizer."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from bundles import FACTS, make_graph, write_bundle
from exported import TEMPLATES

from converters.__main__ import main as convert
from converters.onnx import export
from jaxtempl import cli
from jaxtempl.__main__ import command
from jaxtempl.bundle import bundle
from jaxtempl.bundle.bundle import Bundle
from jaxtempl.config.paths import ASSETS
from jaxtempl.config.sizes import read_size, size_names, tokenizer_path
from jaxtempl.data.dataset import Dataset
from jaxtempl.errors import UserError
from jaxtempl.text.tokenizer import Tokenizer

NANO = ASSETS / "nano"
REFUSED = "has a tokenizer of 8,193 ids and an embedding of 8,192 rows"


def add_token(folder: Path, id_: int = 8192) -> Path:
    """Add a token that text can yield to a folder's tokenizer, as `add_tokens` without resizing the embedding does."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    tokenizer["added_tokens"].append({"id": id_, "content": "<NAME>", **flags})
    path.write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("vocabulary") / "made")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_token(Path(shutil.copytree(NANO, tmp_path_factory.mktemp("vocabulary") / "weights")))


@pytest.mark.parametrize("line", ["adapt", "adapt --plan --device=h100", "finetune"])
def test_weights_are_refused(
    data: Dataset, weights: Path, tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *flags = line.split()
    given = [f"--weights={weights}", f"--data={data.folder}", *flags]
    assert cli.run(command(name), [*given, f"--out={tmp_path / 'run'}"]) == 1
    assert REFUSED in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_is_refused(data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapted = add_token(tiny.make_run(tmp_path / "adapted", [], steps=()).folder)
    tuned = add_token(tiny.make_run(tmp_path / "tuned", TEMPLATES, steps=()).folder)
    case = tmp_path / "case.json"
    case.write_text(json.dumps(tiny.case(1, "card")))
    calls: list[tuple[Callable[[list[str]], None], list[str]]] = [
        (command("finetune"), [f"--from={adapted}", f"--data={data.folder}", f"--out={tmp_path / 'out'}"]),
        (command("finetune"), ["--size=nano", f"--data={data.folder}", f"--out={tuned}"]),
        (command("evaluate"), [f"--run={tuned}", f"--data={data.folder}"]),
        (command("suggest"), [f"--run={tuned}", str(case)]),
        (convert, ["huggingface", f"--run={adapted}", f"--out={tmp_path / 'out'}"]),
        (convert, ["onnx", f"--run={tuned}", f"--data={data.folder}", f"--out={tmp_path / 'out'}"]),
    ]
    for main, flags in calls:
        assert cli.run(main, flags) == 1, flags
        assert REFUSED in capsys.readouterr().err, flags
    assert not (tmp_path / "out").exists()


def test_a_bundle_is_refused(tmp_path: Path) -> None:
    folder = add_token(write_bundle(tmp_path / "bundle", make_graph()))
    (folder / bundle.MANIFEST).unlink()
    bundle.write_manifest(folder, FACTS)
    with pytest.raises(UserError, match=REFUSED):
        Bundle.open(folder)


def test_every_id_of_text_is_verified(data: Dataset, tmp_path: Path) -> None:
    source = tiny.make_run(tmp_path / "run", TEMPLATES, steps=())
    chosen = export.verification_samples(source, "template", data, 10)
    assert sum(chosen.real.values()) == 10
    assert {id_ for row in chosen.rows for id_ in row} >= set(source.tokenizer.text_ids)
    assert len(source.tokenizer.text_ids) == 8190  # all except <|endoftext|> and <|padding|>


def test_every_size_has_a_row_for_each_id_of_its_tokenizer() -> None:
    tokenizers = {path: Tokenizer(path) for path in {tokenizer_path(size) for size in size_names()}}
    for size in size_names():
        tokenizers[tokenizer_path(size)].check_rows(read_size(size)["architecture"]["vocabulary"], size)


def test_the_ids_of_a_vocabulary_with_gaps_are_not_its_count(tmp_path: Path) -> None:
    content = json.loads((NANO / "tokenizer.json").read_text())
    last = max(content["model"]["vocab"], key=content["model"]["vocab"].__getitem__)
    content["model"]["vocab"][last] = 9000
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.vocabulary == 9001
    assert 8191 not in tokenizer.text_ids
    assert tokenizer.special.isdisjoint(tokenizer.text_ids)
    tokenizer.check_rows(9001, "it")
    with pytest.raises(UserError, match="9,001 ids and an embedding of 9,000 rows"):
        tokenizer.check_rows(9000, "it")
