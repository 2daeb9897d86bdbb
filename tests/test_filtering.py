"""The filter finds what is like the domain in other text, and loses nothing good to what is bad."""

import gzip
import json
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from jaxtempl.errors import UsageError, UserError
from jaxtempl.scaling import filtering

LAWS = "The Secretary shall prescribe regulations under section {i}, and each agency shall report to Congress.\n" * 8
CALLS = "hi, my card was stolen, order {i}. Your card is blocked. I want my money back please, thanks, bye!\n" * 8


def documents(folder: Path, bad: int = 0) -> Path:
    """90 of law and 10 of customers, and bad lines among them."""
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


def kept(path: Path) -> list[dict[str, object]]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def test_what_is_like_the_domain_is_kept(tmp_path: Path, domain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = documents(tmp_path, bad=1), tmp_path / "kept" / "out.jsonl.gz"
    filtering.main([f"--documents={path}", f"--like={domain}", f"--out={out}"])
    found = kept(out)
    assert [record["id"] for record in found] == [f"passage-{10 * i + 3}" for i in range(10)]
    assert all("card was stolen" in str(record["text"]) for record in found)
    assert "10 of 100 passages" in capsys.readouterr().out
    (bad,) = (out.parent / "out.jsonl.gz.quarantine.jsonl").read_text().splitlines()
    assert json.loads(bad)["line"] == 1
    again = tmp_path / "again.jsonl.gz"
    filtering.main([f"--documents={path}", f"--like={domain}", f"--out={again}"])
    assert kept(again) == found


def test_what_was_kept_can_be_prepared(tmp_path: Path, domain: Path) -> None:
    from jaxtempl.config.data import PrepareConfig
    from jaxtempl.config.paths import ASSETS
    from jaxtempl.data.dataset import Dataset
    from jaxtempl.prepare import pipeline

    out = tmp_path / "out.jsonl.gz"
    filtering.main([f"--documents={documents(tmp_path)}", f"--like={domain}", f"--out={out}"])
    assert not (tmp_path / "out.jsonl.gz.quarantine.jsonl").exists()
    tokenizer = str(ASSETS / "nano" / "tokenizer.json")
    pipeline.run(PrepareConfig(documents=(str(out),), tokenizer=tokenizer, length=32, out=tmp_path / "data"))
    assert Dataset(tmp_path / "data").manifest["counts"]["documents"]["train"] > 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--keep=1.5"], "--keep=1.5 is a share between 0 and 1"),
        (["--documents="], "name it with --documents=PATH"),
        (["--max_bad=0"], "2 of 102 records are bad"),
    ],
)
def test_what_cannot_be_filtered_is_told(tmp_path: Path, domain: Path, flags: list[str], said: str) -> None:
    out = tmp_path / "out.jsonl.gz"
    with pytest.raises((UsageError, UserError), match=said):
        filtering.main([f"--documents={documents(tmp_path, bad=2)}", f"--like={domain}", f"--out={out}", *flags])
    assert not out.exists()


def test_nothing_is_overwritten_unasked(tmp_path: Path, domain: Path) -> None:
    out = tmp_path / "out.jsonl.gz"
    out.write_bytes(b"mine")
    flags = [f"--documents={documents(tmp_path)}", f"--like={domain}", f"--out={out}"]
    with pytest.raises(UserError, match="choose another --out or pass --overwrite=true"):
        filtering.main(flags)
    assert out.read_bytes() == b"mine"
    filtering.main([*flags, "--overwrite=true"])
    assert kept(out)


@given(st.text("ab \n", max_size=300), st.integers(1, 60))
def test_passages_are_the_text_in_whole_paragraphs(text: str, length: int) -> None:
    found = list(filtering.passages(text, length))
    assert "".join("".join(found).split()) == "".join(text.split())
    paragraphs = {paragraph.strip() for paragraph in text.split("\n")}
    assert all(line.strip() in paragraphs for passage in found for line in passage.split("\n"))
