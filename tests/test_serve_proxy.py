"""The server behind nginx, at a prefix that nginx keeps or removes."""

import contextlib
import http.client
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from bundles import write_serving_bundle
from chromium import browser as browser
from chromium import console, suggested
from playwright.sync_api import Browser
from require import missing
from serving import MESSAGES, Server, free_port, served
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from jaxtempl.config.paths import ROOT
from jaxtempl.config.serving import ServeConfig
from jaxtempl.errors import UsageError
from jaxtempl.serve.http.app import App
from jaxtempl.serve.http.middleware import Boundary
from jaxtempl.serve.metrics import Metrics

CONFIG = """
daemon off;
pid nginx.pid;
error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {
        listen 127.0.0.1:PORT;
        include jaxtempl.conf;
        location /removed/ {
            proxy_pass http://127.0.0.1:8080/;
            client_max_body_size 0;
        }
    }
}
"""
BODY: dict[str, Any] = {"case_id": "c", "messages": MESSAGES}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    """Yield a server as its clients see it: through nginx, with the file of `deploy/`."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") or missing("nginx")
    folder, port = tmp_path_factory.mktemp("proxy"), free_port()
    folder.chmod(0o755)
    with served(write_serving_bundle(folder / "bundle"), folder / "e.sqlite", "--root_path=/templates") as server:
        snippet = (ROOT / "deploy" / "nginx" / "jaxtempl.conf").read_text()
        for name, text in {"jaxtempl.conf": snippet, "nginx.conf": CONFIG}.items():
            (folder / name).write_text(text.replace("PORT", str(port)).replace("8080", str(server.port)))
        with subprocess.Popen([program, "-p", str(folder), "-c", "nginx.conf", "-g", "user root;"]) as nginx:
            try:
                reached(port)
                server.url = f"http://127.0.0.1:{port}"
                yield server
            finally:
                nginx.terminate()


def reached(port: int) -> None:
    """Wait until something listens at the port."""
    for _ in range(200):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(port)


@pytest.mark.parametrize("prefix", ["/templates", "/removed"])
def test_requests_and_links_work_under_a_prefix(prefix: str, proxy: Server) -> None:
    assert proxy.ask(f"{prefix}/v1/suggest", BODY).json["suggestions"]
    page = proxy.ask(f"{prefix}/console").body.decode()
    links = [link for link in re.findall(r'(?:href|src)="([^"]+)"', page) if not link.startswith("data:")]
    assert len(links) == 2
    for link in links:
        assert proxy.ask(urljoin(f"{prefix}/console", link)).status == 200
    assert proxy.ask(f"{prefix}/openapi.json").json["servers"] == [{"url": "/templates"}]


@pytest.mark.parametrize("prefix", ["/templates", "/removed"])
def test_no_redirect_leaves_the_scheme_or_the_prefix(prefix: str, proxy: Server) -> None:
    for path in ("v1/suggest/", "v1/model/", "v2/", "console/console.js/"):
        answer = proxy.ask(f"{prefix}/{path}", json.dumps(BODY).encode())
        assert (answer.status, "Location" in answer.headers) == (404, False)
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port)  # follows no redirect
    with contextlib.closing(connection):
        connection.request("GET", f"{prefix}/console/")
        redirect = connection.getresponse()
    assert (redirect.status, redirect.headers["location"]) == (307, "../console")
    assert b"Advocate's console" in proxy.ask(f"{prefix}/console/").body


def test_nginx_relays_the_error_of_a_body_above_the_limit(proxy: Server) -> None:
    for _ in range(5):
        answer = proxy.ask("/templates/v1/suggest", b" " * 5 * ServeConfig.max_body)
        assert (answer.status, set(answer.json)) == (413, {"error", "request_id"})


@pytest.mark.parametrize("path", ["/metrics", "/admin/rollback", "/templates/metrics", "/templates/admin/rollback"])
def test_the_configuration_of_deploy_exposes_no_administration(path: str, proxy: Server) -> None:
    assert proxy.ask(path, method="POST").status == 404


def test_the_console_works_under_a_prefix(browser: Browser, proxy: Server) -> None:
    with console(browser, f"{proxy.url}/templates") as page:
        suggested(page)


def test_a_prefix_leaves_no_way_around_the_tokens() -> None:
    client = TestClient(Boundary(PlainTextResponse("open"), Metrics(), {"/v1/": None}, "/templates"))
    for path in ("/v1/suggest", "/templates/v1/suggest"):
        assert client.get(path).status_code == 403
    for path in ("/templatesv1/suggest", "/templates/templates/v1/suggest", "/templates"):
        assert client.get(path).text == "open"


@pytest.mark.parametrize("given", ["/v1", "/console/", "v2", "https://here/a", "/a b", "/../a", "/a//b", "/a?b"])
def test_a_prefix_that_cannot_work_is_refused(given: str, tmp_path: Path) -> None:
    config = ServeConfig(store=f"sqlite:///{tmp_path / 'e.sqlite'}", root_path=given)
    with pytest.raises(UsageError, match=rf"--root_path={re.escape(given)} is "):
        App(config, lambda error: None)
