"""The advocate's console: a static page that replays sample cases. No JAX."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from jaxtempl.errors import UserError
from jaxtempl.synthetic import generator
from jaxtempl.text.case_files import read_cases
from jaxtempl.text.cases import Case, fill_texts, parse_case, with_text

MAX_CASES, SYNTHETIC_CASES = 50, 12  # cases from a file, and synthetic cases without one
SEED = 2405  # of the synthetic cases; differs from the generator's default, which training data have

_FOLDER = Path(__file__).parent
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_HEADERS = {
    # Only the page's files and its server are allowed: a customer's text can neither run nor send requests.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a new server's page must not run an older server's scripts
}


def replay_cases(path: str) -> list[Case]:
    """Return the cases to replay.

    Args:
        path: files of cases, of which the first 50 are used; empty for synthetic cases.

    Raises:
        UserError: there is no file or no case in it, or one of the first 50 records is not a case.
    """
    if not path:
        return [parse_case(record) for record in generator.cases(SYNTHETIC_CASES, SEED)]
    shown = list(itertools.islice(read_cases(path), MAX_CASES))
    if not shown:
        raise UserError(f"{path} has no case; name a file of cases with --cases, or leave it out for synthetic cases")
    return shown


def _to_dict(case: Case, texts: Mapping[str, str]) -> dict[str, Any]:
    """Return what the page shows of a case: the messages that the model reads."""
    messages = [{"role": m.role, "text": m.text} for m in with_text(fill_texts(case, texts).messages)]
    return {"case_id": case.case_id, "messages": messages}


def routes(replayed: Sequence[Case], texts: Callable[[], Mapping[str, str]]) -> list[Route]:
    """Return the routes of the page, its files and its cases; the files are read once.

    Args:
        replayed: cases from `replay_cases`.
        texts: returns the text by template id for labelled messages without text.
    """
    parts = {path.name: path for path in _FOLDER.iterdir() if path.suffix in _TYPES}
    page = parts.pop("index.html")

    async def console_cases(_: Request) -> Response:
        shown = [_to_dict(case, texts()) for case in replayed]
        return JSONResponse(shown, headers=_HEADERS | {"Cache-Control": "no-store"})

    async def console_slash(_: Request) -> Response:
        return RedirectResponse("../console", headers=_HEADERS)  # relative: right for any scheme, host and prefix

    files = [_file(f"/console/{name}", path) for name, path in sorted(parts.items())]
    others = [Route("/console/", console_slash), Route("/console/cases", console_cases)]
    return [_file("/console", page), *files, *others]


def _file(address: str, path: Path) -> Route:
    content, kind = path.read_bytes(), _TYPES[path.suffix]

    async def console(_: Request) -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return Route(address, console)
