"""Files of records are found in folders and globs, and read over HTTP from servers without ranges."""

import gzip
import hashlib
import http.server
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from jaxtempl.errors import UserError
from jaxtempl.text.parquet_columns import DOCUMENT
from jaxtempl.text.records import read_records
from jaxtempl.text.sources import find_files

# Over 5 MiB also once compressed: more than fsspec fetches at a time, where a server has ranges.
TEXTS = [random.Random(i).randbytes(60_000).hex() for i in range(80)]
LINES = [f'{{"n": "{text}"}}\n'.encode() for text in TEXTS]
CONTENT = b"".join(LINES)


def names(path: Path | str) -> list[str]:
    return [Path(source.name).name for source in find_files(str(path))]


def place(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"{}\n")


HIDDEN = ["_temporary/0/p.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "_b.jsonl", "sub/._a.jsonl"]


@pytest.mark.parametrize("path", ["", "/", "/**/*.jsonl"])
def test_hidden_and_temporary_files_are_skipped_and_listed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    folder = tmp_path / "_data" / ".v1"  # above what is searched, any name is allowed
    place(folder, "a.jsonl", "sub/c.jsonl", *HIDDEN)
    assert names(f"{folder}{path}") == ["a.jsonl", "c.jsonl"]
    listed = capsys.readouterr().err
    assert listed == f"hidden and temporary files are skipped in {folder} (4): {', '.join(sorted(HIDDEN))}\n"


def test_a_long_list_of_hidden_files_is_shortened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place(tmp_path, "a.jsonl", *(f"_{i}.jsonl" for i in range(9)))
    assert names(tmp_path) == ["a.jsonl"]
    assert capsys.readouterr().err.endswith(" (9): _0.jsonl, _1.jsonl, _2.jsonl, _3.jsonl, _4.jsonl, ...\n")


@pytest.mark.parametrize("path", ["_b.jsonl", "_b*", "_temporary", "_temporary/*/*"])
def test_a_hidden_file_is_read_where_the_path_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    place(tmp_path, "a.jsonl", *HIDDEN)
    assert len(names(tmp_path / path)) == 1
    assert not capsys.readouterr().err


def test_a_file_name_that_is_not_utf8_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.jsonl")).write_bytes(b"{}\n")
    with pytest.raises(UserError, match=r"caf\\udce9.jsonl' is a file name that is not UTF-8; rename the file"):
        find_files(str(tmp_path))


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files` whole, without ranges, and breaks off halfway below `/cut` and `/chunked`."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        mode, content = self._answer()
        if mode == "chunked":
            self.wfile.write(b"%x\r\n%s\r\n" % (len(content) // 2, content[: len(content) // 2]))
        else:
            self.wfile.write(content[: len(content) // 2] if mode == "cut" else content)

    def _answer(self) -> tuple[str, bytes]:
        _, mode, name = self.path.split("/")
        content = self.server.files.get(name)  # type: ignore[attr-defined]
        self.protocol_version = "HTTP/1.1"
        self.close_connection = True
        self.send_response(404 if content is None else 200)
        content = content or b""
        if mode == "encoded":
            self.send_header("Content-Encoding", "gzip")
        if mode == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return mode, content


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Serve the lines in three formats without ranges; yield the address of the server."""
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.table({"n": TEXTS}), sink)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        packed = {"a.jsonl.gz": gzip.compress(CONTENT, 1), "a.parquet": sink.getvalue().to_pybytes()}
        server.files = {"a.jsonl": CONTENT, **packed}  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["whole/a.jsonl", "whole/a.jsonl.gz", "encoded/a.jsonl.gz", "whole/a.parquet"])
def test_a_server_without_ranges_is_read(url: str, path: str) -> None:
    (source,) = find_files(f"{url}/{path}")
    records = [record for _, record in read_records(source, DOCUMENT)]
    assert records == ([{"n": text} for text in TEXTS] if path.endswith("parquet") else LINES)
    assert source.facts()["bytes"] > 0
    if path == "whole/a.jsonl":
        assert source.facts()["sha256"] == hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
@pytest.mark.parametrize(("mode", "size"), [("cut", " of [0-9,]+"), ("chunked", "")])
def test_a_server_that_breaks_off_is_reported_in_one_line(url: str, mode: str, name: str, size: str) -> None:
    (source,) = find_files(f"{url}/{mode}/{name}")
    with pytest.raises(
        UserError, match=f"{mode}/{name} broke off at byte [0-9,]+{size} .*run the command again"
    ) as error:
        list(read_records(source, DOCUMENT))
    assert "\n" not in str(error.value)


def test_an_unreachable_server_is_reported_in_one_line(url: str) -> None:
    with pytest.raises(UserError, match="names no file"):
        find_files(f"{url}/whole/absent.jsonl")
    with pytest.raises(UserError, match=r"cannot be read: .*127\.0\.0\.1"):
        find_files("http://127.0.0.1:9/a.jsonl")


def test_a_file_that_shrinks_while_it_is_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(CONTENT)
    (source,) = find_files(str(tmp_path))
    os.truncate(tmp_path / "a.jsonl", 1000)
    with pytest.raises(UserError, match=f"broke off at byte 1,000 of {len(CONTENT):,} .the source ended."):
        list(read_records(source, DOCUMENT))
