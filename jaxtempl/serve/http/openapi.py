"""Describe the routes as OpenAPI 3.1 (GET /openapi.json), from the structs that requests are checked against."""

from typing import Any, NamedTuple

import msgspec

import jaxtempl
from jaxtempl.serve.http import kserve
from jaxtempl.serve.schema import ErrorAnswer, Event, ModelAnswer, Reload, SuggestAnswer, SuggestRequest, TemplateAnswer

ERRORS = {
    401: "A bearer token is required.",
    403: "The server was started without --admin_tokens.",
    404: "No such suggestion or version.",
    408: "The body did not arrive in time.",
    409: "A newer request of the same case superseded this one, or another change of the model is in progress.",
    413: "The body is too large.",
    415: "The body is compressed.",
    422: "The body is not JSON, or a field is missing or invalid; `field` names it.",
    429: "Too many requests are waiting; retry after `Retry-After` seconds.",
    500: "The model failed on this request, or the server has an internal error.",
    503: "The model is not loaded yet, or the event store cannot be reached; retry after `Retry-After` seconds.",
    504: "The answer was not computed before the deadline.",
}
BINARY: dict[str, Any] = {"application/octet-stream": {}}  # KServe's binary form, an alternative to JSON
READS = (408, 413, 415, 422)  # errors of every route that reads a body


class Operation(NamedTuple):
    """One route.

    Attributes:
        method: HTTP method.
        path: Path with its parameters in braces.
        summary: What the route does, in one sentence.
        body: Struct of the request's body.
        answer: Struct or type of the JSON answer, or another media type.
        errors: Possible statuses except 200.
        guard: Name of the required tokens.
    """

    method: str
    path: str
    summary: str
    body: Any
    answer: Any
    errors: tuple[int, ...] = ()
    guard: str = ""


SUGGEST_ERRORS = (*READS, 409, 429, 500, 503, 504)
MODEL = "templates"  # name of the only model in KServe's paths
MODEL_PATH = f"/v2/models/{MODEL}"
VERSION_PATH = MODEL_PATH + "/versions/{version}"
LISTS = list[TemplateAnswer], list[dict[str, Any]]
OPERATIONS = (
    Operation("post", "/v1/suggest", "Return the templates that are most likely next.", SuggestRequest,
              SuggestAnswer, SUGGEST_ERRORS, "bearer"),
    Operation("post", "/v1/events", "Store an advocate's action on suggestions; a repeated event is stored once.",
              Event, dict, (*READS, 404, 503), "bearer"),
    Operation("get", "/v1/model", "Describe the model that serves.", None, ModelAnswer, (503,), "bearer"),
    Operation("get", "/v1/templates", "List all templates.", None, LISTS[0], (503,), "bearer"),
    Operation("post", "/admin/reload", "Verify and warm a bundle, then serve it.", Reload, dict,
              (*READS, 403, 409, 503), "admin"),
    Operation("post", "/admin/rollback", "Serve the previous model.", None, dict, (403, 409, 422), "admin"),
    Operation("get", "/livez", "Return 200 while the process answers.", None, dict),
    Operation("get", "/readyz", "Return 200 once the model is warm.", None, dict, (503,)),
    Operation("get", "/metrics", "Return the metrics for Prometheus.", None, "text/plain"),
    Operation("get", "/console/cases", "List the cases that the console replays.", None, LISTS[1], (), "bearer"),
    Operation("get", "/v2", "KServe v2: describe the server.", None, kserve.ServerMetadata),
    Operation("get", "/v2/health/live", "KServe v2: same as /livez.", None, dict),
    Operation("get", "/v2/health/ready", "KServe v2: same as /readyz.", None, dict, (503,)),
    *(
        operation
        for path in (MODEL_PATH, VERSION_PATH)
        for operation in (
            Operation("get", path, "KServe v2: describe the model.", None, kserve.ModelMetadata, (404, 503), "bearer"),
            Operation("get", f"{path}/ready", "KServe v2: same as /readyz.", None, dict, (404, 503), "bearer"),
            Operation("post", f"{path}/infer", "KServe v2: return templates for a batch of cases, as JSON or binary.",
                      kserve.InferRequest, kserve.InferAnswer, (404, *SUGGEST_ERRORS), "bearer"),
        )
    ),
)  # fmt: skip


def document(guarded: bool, root_path: str = "") -> dict[str, Any]:
    """Return the whole document.

    Args:
        guarded: Whether requests require a token.
        root_path: Prefix of a proxy before each path.
    """
    kinds = [each for operation in OPERATIONS for each in (operation.body, operation.answer)]
    kinds = [*(kind for kind in kinds if kind and not isinstance(kind, str)), ErrorAnswer]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    named = dict(zip(map(repr, kinds), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation, named, guarded)
    schemes = {name: {"type": "http", "scheme": "bearer"} for name in ("bearer", "admin")}
    return {
        "openapi": "3.1.0",
        "info": {"title": "jaxtempl", "version": jaxtempl.__version__, "description": "Suggests reply templates."},
        "servers": [{"url": root_path or "/"}],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": schemes},
    }


def _describe(operation: Operation, named: dict[str, Any], guarded: bool) -> dict[str, Any]:
    error = _json(named[repr(ErrorAnswer)])
    is_guarded = operation.guard == "admin" or (guarded and operation.guard == "bearer")
    errors = (*operation.errors, 401) if is_guarded else operation.errors
    kind = operation.answer
    answer = {kind: {"schema": {"type": "string"}}} if isinstance(kind, str) else _json(named[repr(kind)])
    binary = BINARY if operation.body is kserve.InferRequest else {}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "responses": {"200": {"description": "Done.", "content": answer | binary}}
        | {str(status): {"description": ERRORS[status], "content": error} for status in sorted(errors)},
    }
    if operation.body:
        optional = operation.body is Reload
        described["requestBody"] = {"required": not optional, "content": _json(named[repr(operation.body)]) | binary}
    if "{version}" in operation.path:
        described["parameters"] = [{"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}]
    if is_guarded:
        described["security"] = [{operation.guard: []}]
    return described


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
