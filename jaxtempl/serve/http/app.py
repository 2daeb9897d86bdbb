"""HTTP routes: suggestions, events, the model, health, and the model in the KServe v2 protocol."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from jaxtempl.config.serving import ServeConfig
from jaxtempl.errors import UsageError
from jaxtempl.serve import schema
from jaxtempl.serve.console import page
from jaxtempl.serve.events.store import Store
from jaxtempl.serve.http.auth import Tokens
from jaxtempl.serve.http.kserve import (
    HEADER_LENGTH,
    encode_answer,
    locate_error,
    model_metadata,
    parse_call,
    parse_contexts,
    server_metadata,
)
from jaxtempl.serve.http.middleware import Boundary, json_response, read_body, run_until_disconnect
from jaxtempl.serve.http.openapi import MODEL, MODEL_PATH, VERSION_PATH, document
from jaxtempl.serve.inference.model import ServedModel
from jaxtempl.serve.metrics import Metrics
from jaxtempl.serve.schema import Event, FieldError, Reload, SuggestRequest
from jaxtempl.serve.service import NotReadyError, Service

YEARS = (1970, 2200)  # range of an event's time


class App:
    """The routes of one server.

    Args:
        config: The command's configuration.
        on_loaded: Callback after loading the first model, with its error or None.

    Raises:
        UsageError: --root_path is not a prefix of paths.
        UserError: The store or the cases cannot be opened.
    """

    def __init__(self, config: ServeConfig, on_loaded: Callable[[Exception | None], None]) -> None:
        self._config, self._on_loaded = config, on_loaded
        self._cases = page.replay_cases(config.cases)
        self._root_path = _root_path(config.root_path, [route.path for route in self.routes()])
        self._openapi = document(bool(config.tokens), self._root_path)
        self._metrics = Metrics()
        self._store = Store(config.store)
        self._service: Service

    def asgi(self) -> ASGIApp:
        """Return the application; raise UserError if a file of tokens is invalid.

        This is Starlette's router without its middleware stack, which `Boundary` replaces in one step.
        """
        config = self._config
        admin = Tokens(Path(config.admin_tokens)) if config.admin_tokens else None
        guards: dict[str, Tokens | None] = {"/admin/": admin}
        if config.tokens:
            guards |= dict.fromkeys(("/v1/", "/v2/models", "/console/cases"), Tokens(Path(config.tokens)))
        # A redirect to the path without a trailing slash would name this server's scheme and path, not the proxy's.
        router = Router(self.routes(), redirect_slashes=False, lifespan=self.lifespan)
        return Boundary(router, self._metrics, guards, self._root_path)

    @asynccontextmanager
    async def lifespan(self, _: object) -> AsyncGenerator[None]:
        """Load the first model while health checks are answered; write pending records at the end."""
        self._service = Service(self._config, self._store, self._metrics)
        loading = asyncio.create_task(self._load())
        yield
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        await self._service.close()

    async def _load(self) -> None:
        try:
            await self._service.load(Path(self._config.bundle))
        except Exception as error:
            self._on_loaded(error)
        else:
            self._on_loaded(None)

    def routes(self) -> Sequence[Route]:
        """Return all routes."""
        model = MODEL_PATH, VERSION_PATH
        return [
            Route("/v1/suggest", self.suggest, methods=["POST"]),
            Route("/v1/events", self.events, methods=["POST"]),
            Route("/v1/model", self.model),
            Route("/v1/templates", self.templates),
            Route("/admin/reload", self.reload, methods=["POST"]),
            Route("/admin/rollback", self.rollback, methods=["POST"]),
            Route("/livez", self.livez),
            Route("/readyz", self.readyz),
            Route("/metrics", self.metrics),
            Route("/openapi.json", self.openapi),
            Route("/v2", self.kserve),
            Route("/v2/health/live", self.livez),
            Route("/v2/health/ready", self.readyz),
            *(Route(path, self.kserve_model) for path in model),
            *(Route(f"{path}/ready", self.kserve_ready) for path in model),
            *(Route(f"{path}/infer", self.infer, methods=["POST"]) for path in model),
            *page.routes(self._cases, self._listed_texts),
        ]

    async def suggest(self, request: Request) -> Response:
        """POST /v1/suggest."""
        suggest_request = schema.decode(SuggestRequest, await self._body(request))
        answer = await run_until_disconnect(request, self._service.suggest(suggest_request))
        after = BackgroundTask(self._service.shadow, answer.suggestion_id, suggest_request)
        return json_response(answer, background=after)

    async def events(self, request: Request) -> Response:
        """POST /v1/events; answers after the event is committed."""
        event = schema.decode(Event, await self._body(request))
        if not YEARS[0] <= event.at.year < YEARS[1]:
            raise FieldError("at", f"is outside the years {YEARS[0]} to {YEARS[1] - 1}")
        await self._service.commit_event(event)
        return json_response({"kept": True})

    async def model(self, request: Request) -> Response:
        """GET /v1/model."""
        return json_response(self._model().facts())

    async def templates(self, request: Request) -> Response:
        """GET /v1/templates."""
        return json_response(self._model().templates())

    async def reload(self, request: Request) -> Response:
        """POST /admin/reload."""
        change = schema.decode(Reload, await self._body(request) or b"{}")
        folder = Path(change.bundle) if change.bundle else self._model().folder
        try:
            return json_response({"model_version": await self._service.load(folder, change.experiments)})
        except OSError as error:
            raise FieldError("bundle", f"cannot be read: {error.strerror}") from None

    async def rollback(self, request: Request) -> Response:
        """POST /admin/rollback."""
        return json_response({"model_version": await self._service.rollback()})

    async def livez(self, request: Request) -> Response:
        """GET /livez: the process answers."""
        return json_response({"live": True})

    async def readyz(self, request: Request) -> Response:
        """GET /readyz: the model has run every length once."""
        self._model()
        return json_response({"ready": True})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(self._metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        return json_response(self._openapi)

    async def kserve(self, request: Request) -> Response:
        """GET /v2."""
        return json_response(server_metadata())

    async def kserve_model(self, request: Request) -> Response:
        """GET /v2/models/templates."""
        return json_response(model_metadata(MODEL, self._version(request)))

    async def kserve_ready(self, request: Request) -> Response:
        """GET /v2/models/templates/ready."""
        self._version(request)
        return json_response({"ready": True})

    async def infer(self, request: Request) -> Response:
        """POST /v2/models/templates/infer."""
        self._version(request)
        call = parse_call(await self._body(request), request.headers.get(HEADER_LENGTH))
        pending = (self._find(index, context) for index, context in enumerate(parse_contexts(call)))
        results = await run_until_disconnect(request, _gather(pending))
        templates = [[each.template for each in row.suggestions] for row in results]
        probabilities = [[each.probability for each in row.suggestions] for row in results]
        versions = ",".join(sorted({row.model_version for row in results}))  # several if pairs are in several arms
        raw, head = encode_answer(call, MODEL, versions, templates, probabilities)
        if head is None:
            return Response(raw, media_type="application/json")
        return Response(raw, 200, {HEADER_LENGTH: str(head)}, "application/octet-stream")

    async def _find(self, index: int, context: schema.ContextRequest) -> schema.SuggestAnswer:
        """Find suggestions for an element of KServe's input; errors name the element's index."""
        try:
            return await self._service.suggest(context, keep=False)
        except FieldError as error:
            raise locate_error(index, error) from None

    def _listed_texts(self) -> Mapping[str, str]:
        return self._service.model.ranker.listed_texts if self._service.model else {}

    def _model(self) -> ServedModel:
        if self._service.model is None:
            raise NotReadyError
        return self._service.model

    def _version(self, request: Request) -> str:
        """Return the version that serves; raise a 404 if the path names another."""
        version = self._model().version
        if request.path_params.get("version", version) != version:
            raise HTTPException(404, "another version serves; GET /v1/model returns its name")
        return version

    async def _body(self, request: Request) -> bytes:
        return await read_body(request, self._config.max_body, self._config.timeout_ms / 1000)


def _root_path(given: str, paths: Iterable[str]) -> str:
    """Return --root_path with one slash before it and none behind it; raise UsageError if it cannot be a prefix."""
    prefix = "/" + given.strip("/") if given.strip("/") else ""
    if not re.fullmatch(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*", prefix):
        raise UsageError(f"--root_path={given} is not the path of a URL; give only the proxy's prefix, like /templates")
    if prefix and any(path.startswith(f"{prefix}/") for path in paths):
        raise UsageError(f"--root_path={given} is a path of this server; choose another prefix")
    return prefix


async def _gather(pending: Iterable[Coroutine[Any, Any, schema.SuggestAnswer]]) -> list[schema.SuggestAnswer]:
    """Await all or none; they start together, so that one model answers them."""
    tasks = [asyncio.ensure_future(each) for each in pending]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
