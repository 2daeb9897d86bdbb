"""The advocate's console: one static page, and the sample cases that it replays. No JAX."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from jaxtempl.errors import UserError
from jaxtempl.synthetic import generator
from jaxtempl.text.case_files import read_cases
from jaxtempl.text.cases import Case, parse_case

MOST, MADE_UP = 50, 12  # cases of a file, which all go to the page, and those without one
SEED = 2405  # of the made-up ones, which are then none of those that bin/demo trains on

_FOLDER = Path(__file__).parent
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_HEADERS = {
    # Nothing but its own files and the server it is from: what a customer wrote can neither run nor call out.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a new server's page is not to run with the old one's scripts
}


def replay_cases(path: str) -> list[dict[str, Any]]:
    """The cases that can be replayed, `{"case_id", "messages": [{"role", "text"}]}` each.

    Args:
        path: files of cases as bin/prepare reads them, of which the first 50 are taken; made-up ones where empty.

    Raises:
        UserError: there is no file, no case in it, or a record among the first that is none.
    """
    if not path:
        return [_told(parse_case(record)) for record in generator.cases(MADE_UP, SEED)]
    told = [_told(case) for case in itertools.islice(read_cases(path), MOST)]
    if not told:
        raise UserError(f"{path} has no case; name a file of cases with --cases, or none for made-up ones")
    return told


def _told(case: Case) -> dict[str, Any]:
    return {"case_id": case.case_id, "messages": [{"role": said.role, "text": said.text} for said in case.messages]}


def routes(replayed: Sequence[dict[str, Any]]) -> list[Route]:
    """The page, its parts and its cases; the files are read once.

    Args:
        replayed: what `cases` gives.
    """
    parts = {path.name: path for path in _FOLDER.iterdir() if path.suffix in _TYPES}
    page = parts.pop("index.html")

    async def console_cases(_: Request) -> Response:
        return JSONResponse(replayed, headers=_HEADERS | {"Cache-Control": "no-store"})

    files = [_file(f"/console/{name}", path) for name, path in sorted(parts.items())]
    return [_file("/console", page), *files, Route("/console/cases", console_cases)]


def _file(address: str, path: Path) -> Route:
    content, kind = path.read_bytes(), _TYPES[path.suffix]

    async def console(_: Request) -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return Route(address, console)
