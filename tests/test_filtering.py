"""Tests of the filter: it keeps domain-like passages, and bad records do not affect good ones."""

import gzip
import json
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from jaxtempl.commands import scaling
from jaxtempl.errors import UsageError, UserError
from jaxtempl.scaling import filtering

LAWS = "The Secretary shall prescribe regulations under section {i}, and each agency shall report to Congress.\n" * 8
CALLS = "hi, my card was stolen, order {i}. Your card is blocked. I want my money back please, thanks, bye!\n" * 8


def documents(folder: Path, bad: int = 0) -> Path:
    """Write 90 legal documents and 10 of customers, with bad lines in between."""
    texts = [(CALLS if i % 10 == 3 else LAWS).replace("{i}", str(i)) for i in range(100)]
    lines = [json.dumps({"id": f"d{i}", "text": text}) for i, text in enumerate(texts)]
    for i in range(bad):
        lines.insert(7 * i, "{broken")
    path = folder / "docs.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.dataset(tmp_path_factory.mktemp("domain") / "made").folder


def read_records(path: Path) -> list[dict[str, object]]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def test_domain_like_passages_are_kept(tmp_path: Path, domain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = documents(tmp_path, bad=1), tmp_path / "kept" / "out.jsonl.gz"
    scaling.main(["filter", f"--documents={path}", f"--like={domain}", f"--out={out}"])
    records = read_records(out)
    assert [record["id"] for record in records] == [f"passage-{10 * i + 3}" for i in range(10)]
    assert all("card was stolen" in str(record["text"]) for record in records)
    assert "10 of 100 passages" in capsys.readouterr().out
    (bad,) = (out.parent / "out.jsonl.gz.quarantine.jsonl").read_text().splitlines()
    assert json.loads(bad)["line"] == 1
    again = tmp_path / "again.jsonl.gz"
    scaling.main(["filter", f"--documents={path}", f"--like={domain}", f"--out={again}"])
    assert read_records(again) == records


def test_the_output_can_be_prepared(tmp_path: Path, domain: Path) -> None:
    from jaxtempl.config.data import PrepareConfig
    from jaxtempl.config.paths import ASSETS
    from jaxtempl.data.dataset import Dataset
    from jaxtempl.prepare import pipeline

    out = tmp_path / "out.jsonl.gz"
    scaling.main(["filter", f"--documents={documents(tmp_path)}", f"--like={domain}", f"--out={out}"])
    assert not (tmp_path / "out.jsonl.gz.quarantine.jsonl").exists()
    tokenizer = str(ASSETS / "nano" / "tokenizer.json")
    pipeline.run(PrepareConfig(documents=(str(out),), tokenizer=tokenizer, length=32, out=tmp_path / "data"))
    assert Dataset(tmp_path / "data").manifest["counts"]["documents"]["train"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--keep=1.5"], "--keep=1.5 is not a share between 0 and 1"),
        (["--documents="], "name it with --documents=PATH"),
        (["--max_bad=0"], "2 of 102 records are bad"),
    ],
)
def test_wrong_flags_and_bad_records_are_rejected(tmp_path: Path, domain: Path, flags: list[str], message: str) -> None:
    out = tmp_path / "out.jsonl.gz"
    with pytest.raises((UsageError, UserError), match=message):
        scaling.main(
            ["filter", f"--documents={documents(tmp_path, bad=2)}", f"--like={domain}", f"--out={out}", *flags]
        )
    assert not out.exists()


def test_an_existing_file_is_kept_without_overwrite(tmp_path: Path, domain: Path) -> None:
    out = tmp_path / "out.jsonl.gz"
    out.write_bytes(b"mine")
    flags = [f"--documents={documents(tmp_path)}", f"--like={domain}", f"--out={out}"]
    with pytest.raises(UserError, match="choose another --out or pass --overwrite=true"):
        scaling.main(["filter", *flags])
    assert out.read_bytes() == b"mine"
    scaling.main(["filter", *flags, "--overwrite=true"])
    assert read_records(out)


@given(st.text("ab \n", max_size=300), st.integers(1, 60))
def test_passages_contain_the_text_in_whole_paragraphs(text: str, length: int) -> None:
    passages = list(filtering.split_passages(text, length))
    assert "".join("".join(passages).split()) == "".join(text.split())
    paragraphs = {paragraph.strip() for paragraph in text.split("\n")}
    assert all(line.strip() in paragraphs for passage in passages for line in passage.split("\n"))
