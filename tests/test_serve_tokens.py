"""A request without a valid token is rejected however its path is written, and a token opens only its own paths."""

import hmac
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundles import write_serving_bundle
from serving import MESSAGES, Server, served
from wire import CLOSE, HEAD, PAGE, PATHS, length, send, statuses

from jaxtempl.errors import UserError
from jaxtempl.serve.http import openapi
from jaxtempl.serve.http.auth import Tokens

USER, OTHER, ADMIN = "user-token_1", "user+token/2==", "admin-token"
REQUEST = {"case_id": "c", "messages": MESSAGES}
OPEN = {"/livez", "/readyz", "/metrics", "/openapi.json", "/v2", "/v2/health/live", "/v2/health/ready"}
CLOSED = sorted(path for path in PATHS.keys() - OPEN - {*PAGE} if not path.startswith("/admin/"))
SECRET = "canary-token"  # a wrong token, which no output may contain


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_serving_bundle(tmp_path_factory.mktemp("tokens") / "bundle")


@pytest.fixture(scope="module")
def guarded(folder: Path) -> Iterator[Server]:
    """Yield a server with tokens; at the end, its output must contain no token, right or wrong."""
    tokens, admin = folder.parent / "tokens", folder.parent / "admin"
    tokens.write_text(f"# of the support floor\n\n  {USER}  \n{OTHER}\n")
    admin.write_text(ADMIN)
    with served(folder, folder.parent / "guarded.sqlite", f"--tokens={tokens}", f"--admin_tokens={admin}") as server:
        yield server
        told = server.ask("/metrics").body.decode() + "".join(server.printed + server.log)
        assert not [token for token in (USER, OTHER, ADMIN, SECRET) if token in told]


@pytest.fixture(scope="module")
def unguarded(folder: Path) -> Iterator[Server]:
    with served(folder, folder.parent / "open.sqlite") as server:
        yield server


def ask(server: Server, path: str, token: str | None) -> Any:
    method = "POST" if "POST" in PATHS.get(path, ()) else "GET"
    head: dict[str, Any] = {} if token is None else {"Authorization": f"Bearer {token}"}
    return server.ask(path.replace("{version}", "none"), None if method == "GET" else b"{}", method, **head)


def raw(path: bytes, *head: bytes, method: bytes = b"GET") -> bytes:
    return method + b" " + path + HEAD + CLOSE + b"".join(line + b"\r\n" for line in head) + b"\r\n"


def test_without_token_files_users_need_no_token_and_admin_is_closed(unguarded: Server) -> None:
    assert unguarded.suggest().status == 200
    for path in CLOSED:
        assert ask(unguarded, path, None).status in (200, 404, 422)
    for path in ("/admin/reload", "/admin/rollback", "/admin/", "/admin/other"):
        for token in (None, "", USER, ADMIN, "None", "null"):
            answer = ask(unguarded, path, token)
            assert (answer.status, "--admin_tokens" in answer.json["error"]) == (403, True)


@pytest.mark.parametrize("path", CLOSED)
def test_a_user_path_requires_a_user_token(path: str, guarded: Server) -> None:
    for token in (USER, OTHER):
        assert ask(guarded, path, token).status in (200, 404, 422)
    for token in (None, "", ADMIN, SECRET, USER[:-1], USER + "x", USER.upper(), f"{USER} {OTHER}", f"{USER},"):
        answer = ask(guarded, path, token)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert set(answer.json) == {"error", "request_id"}


@pytest.mark.parametrize("path", ["/admin/reload", "/admin/rollback"])
def test_a_user_token_does_not_open_admin(path: str, guarded: Server) -> None:
    for token in (None, "", USER, OTHER, SECRET):
        assert ask(guarded, path, token).status == 401
    assert ask(guarded, path, ADMIN).status in (200, 422)  # 422 if there is no model to roll back to


def test_the_document_lists_the_paths_that_require_a_token(guarded: Server) -> None:
    found = guarded.ask("/openapi.json").json
    assert found == openapi.document(guarded=True)
    wanted = {path for path, each in found["paths"].items() for told in each.values() if "security" in told}
    assert wanted == {*CLOSED, "/admin/reload", "/admin/rollback"}


@pytest.mark.parametrize("path", sorted({*OPEN, *PAGE}))
def test_health_and_the_console_page_require_no_token(path: str, guarded: Server) -> None:
    for token in (None, SECRET):
        assert ask(guarded, path, token).status == 200


@pytest.mark.parametrize(
    "head",
    [
        b"Authorization: " + USER.encode(),
        b"Authorization: Basic " + USER.encode(),
        b"Authorization: Bearer" + USER.encode(),
        b"Authorization: Bearer\t" + USER.encode(),
        b"Authorization: Bearer: " + USER.encode(),
        b"Authorization: Bearer, Bearer " + USER.encode(),
        b"Authorization: Bearer \xff" + USER.encode(),
        b"Authorization: Bearer \xc3\xa4\xf0\x9f\x98\x80",
        b"Authorization: Bearer " + USER.encode() * 10_000,
        b"Authorization: Bearer #",
        b"Authorization: Bearer " + b"# of the support floor",
        b"Authorization:",
        b"X-Authorization: Bearer " + USER.encode(),
        b"Authorization: Bearer %s\r\nAuthorization: Bearer %s" % (USER.encode(), SECRET.encode()),
        b"Authorization: Bearer %s\r\nAuthorization: Bearer %s" % (SECRET.encode(), USER.encode()),
        b"Authorization: Bearer %s\r\nauthorization: Bearer %s" % (USER.encode(), USER.encode()),
    ],
)
def test_a_malformed_authorization_header_is_rejected(head: bytes, guarded: Server) -> None:
    assert statuses(send(guarded, raw(b"/v1/model", head))) == [401]


@pytest.mark.parametrize("scheme", [b"Bearer", b"bearer", b"BEARER", b"Bearer  "])
def test_the_scheme_is_case_insensitive(scheme: bytes, guarded: Server) -> None:
    assert statuses(send(guarded, raw(b"/v1/model", b"AUTHORIZATION: %s %s" % (scheme, OTHER.encode())))) == [200]


@pytest.mark.parametrize("start", [b"/v1/model", b"/v1/templates", b"/console/cases", b"/v2/models/templates"])
def test_no_spelling_of_a_path_bypasses_the_guard(start: bytes, guarded: Server) -> None:
    name = start[1:]
    ways = [
        b"/" + start, b"//" + name, start + b"/", start + b"//", b"/." + start, b"/v2/.." + start, b"/v2/../" + name,
        b"/console/.." + start, b"/livez/.." + start, b"/livez/%2e%2e" + start, b"/livez;" + start, b"/%2f" + name,
        b"%2f" + name, name, start.upper(), start.title(), start.replace(b"/", b"%2f"), start.replace(b"/", b"\\"),
        b"/%" + b"%02x" % name[0] + name[1:], b"/%25" + b"%02x" % name[0] + name[1:], start + b"%00", start + b"%0a",
        start + b"%20", start + b"?", start + b"#", start + b";a=b", start + b".json",
        b"http://here" + start, b"http://here/" + start, b"http://livez" + start, b"*", b"?" + start, b"/%c0%af" + name,
        b"/\x01" + name, start + b" HTTP/1.1 ", b"/livez%20HTTP/1.1%0d%0aGET%20" + start,
    ]  # fmt: skip
    for way in ways:
        answer = send(guarded, raw(way))
        assert statuses(answer) in ([307], [400], [401], [404]), (way, answer)
    for method in (b"HEAD", b"OPTIONS", b"PUT", b"TRACE"):
        assert statuses(send(guarded, raw(start, method=method))) == [401]
    for head in (
        b"X-Original-URL: /livez",
        b"X-Forwarded-Prefix: /livez",
        b"X-Forwarded-For: 127.0.0.1",
        b"Host: admin",
    ):
        assert statuses(send(guarded, raw(start, head))) == [401]


def test_a_rejected_body_is_not_parsed_as_the_next_request(guarded: Server) -> None:
    inner = raw(b"/livez")
    answers = send(guarded, b"POST /v1/suggest" + HEAD + length(len(inner)) + b"\r\n" + inner + inner)
    assert statuses(answers) == [401, 200]


def test_every_token_is_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokens").write_text("a\nb\nc\n")
    tokens, compared = Tokens(tmp_path / "tokens"), list[int]()
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda one, two: compared.append(len(one)) or real(one, two))
    for header, admitted in {b"Bearer a": True, b"Bearer c": True, b"Bearer d": False, b"": False}.items():
        assert tokens.admits(header) == admitted
    assert compared == [32] * 3 * 4  # digests, so that the length leaks nothing either


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b"", "has no token"),
        (b"\n \n# none\n  # nor here\n", "has no token"),
        (b"right\ntwo words\n", "a header cannot carry"),
        ("t\u00f6ken".encode(), "a header cannot carry"),
        (b"token\n\xef\xbb\xbftoken", "a header cannot carry"),
        (b"to\0ken", "a header cannot carry"),
        (b"\xff\xfet\0", "not UTF-8 text"),
    ],
)
def test_the_error_of_a_bad_token_file_is_one_line(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        Tokens(path)
    assert "\n" not in str(error.value)
    assert "right" not in str(error.value)
