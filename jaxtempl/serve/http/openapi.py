"""GET /openapi.json: the routes as OpenAPI 3.1, made from the same structs that requests are checked by."""

from typing import Any, NamedTuple

import msgspec

import jaxtempl
from jaxtempl.serve.http import kserve
from jaxtempl.serve.schema import ErrorAnswer, Event, ModelAnswer, Reload, SuggestAnswer, SuggestRequest, TemplateAnswer

ERRORS = {
    401: "A bearer token is needed.",
    403: "The server was started without --admin_tokens.",
    404: "No such suggestion or version.",
    408: "The body did not come in time.",
    409: "A newer request of the same case took its place, or another change of the model is under way.",
    413: "The body is too large.",
    415: "The body is compressed.",
    422: "The body is no JSON, or a field is missing or wrong; `field` names it.",
    429: "Too many wait; come back after `Retry-After` seconds.",
    500: "The model failed on this request, or the server has an error.",
    503: "The model is not loaded yet, or the event store cannot be reached; come back after `Retry-After` seconds.",
    504: "The answer did not come in time.",
}
BINARY: dict[str, Any] = {"application/octet-stream": {}}  # beside JSON, in KServe's binary form
READS = (408, 413, 415, 422)  # what any route that reads a body may say


class Operation(NamedTuple):
    """One route.

    Attributes:
        method: of HTTP.
        path: with its parameters in braces.
        told: what it does, in a sentence.
        takes: struct of its body.
        gives: struct or type of its answer in JSON, or the media type of another.
        errors: statuses that it may answer with beside 200.
        guard: the name of the tokens that it wants.
    """

    method: str
    path: str
    told: str
    takes: Any
    gives: Any
    errors: tuple[int, ...] = ()
    guard: str = ""


SUGGESTS = (*READS, 409, 429, 500, 503, 504)
MODEL = "templates"  # the name of the one model in KServe's paths
MODEL_PATH = f"/v2/models/{MODEL}"
VERSION_PATH = MODEL_PATH + "/versions/{version}"
LISTS = list[TemplateAnswer], list[dict[str, Any]]
OPERATIONS = (
    Operation("post", "/v1/suggest", "The templates most likely to come next.", SuggestRequest, SuggestAnswer,
              SUGGESTS, "bearer"),
    Operation("post", "/v1/events", "Keeps what an advocate did with suggestions; sent again, it is kept once.",
              Event, dict, (*READS, 404, 503), "bearer"),
    Operation("get", "/v1/model", "What serves.", None, ModelAnswer, (503,), "bearer"),
    Operation("get", "/v1/templates", "All templates.", None, LISTS[0], (503,), "bearer"),
    Operation("post", "/admin/reload", "Verifies and warms a bundle, then serves it.", Reload, dict,
              (*READS, 403, 409, 503), "admin"),
    Operation("post", "/admin/rollback", "Serves the model before this one.", None, dict, (403, 409, 422), "admin"),
    Operation("get", "/livez", "Whether the process answers.", None, dict),
    Operation("get", "/readyz", "Whether the model is warm.", None, dict, (503,)),
    Operation("get", "/metrics", "For Prometheus.", None, "text/plain"),
    Operation("get", "/docs", "This, for people.", None, "text/html"),
    Operation("get", "/console/cases", "Cases that the console replays.", None, LISTS[1], (), "bearer"),
    Operation("get", "/v2", "KServe v2: the server.", None, kserve.ServerMetadata),
    Operation("get", "/v2/health/live", "KServe v2: as /livez.", None, dict),
    Operation("get", "/v2/health/ready", "KServe v2: as /readyz.", None, dict, (503,)),
    *(
        operation
        for path in (MODEL_PATH, VERSION_PATH)
        for operation in (
            Operation("get", path, "KServe v2: the model.", None, kserve.ModelMetadata, (404, 503), "bearer"),
            Operation("get", f"{path}/ready", "KServe v2: whether it is ready.", None, dict, (404, 503), "bearer"),
            Operation("post", f"{path}/infer", "KServe v2: templates for a batch of cases, as JSON or binary.",
                      kserve.InferRequest, kserve.InferAnswer, (404, *SUGGESTS), "bearer"),
        )
    ),
)  # fmt: skip


def document(guarded: bool) -> dict[str, Any]:
    """The whole document.

    Args:
        guarded: whether requests want a token.
    """
    kinds = [each for operation in OPERATIONS for each in (operation.takes, operation.gives)]
    kinds = [*(kind for kind in kinds if kind and not isinstance(kind, str)), ErrorAnswer]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    named = dict(zip(map(repr, kinds), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation, named, guarded)
    schemes = {name: {"type": "http", "scheme": "bearer"} for name in ("bearer", "admin")}
    return {
        "openapi": "3.1.0",
        "info": {"title": "jaxtempl", "version": jaxtempl.__version__, "description": "Suggests reply templates."},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": schemes},
    }


def _described(operation: Operation, named: dict[str, Any], guarded: bool) -> dict[str, Any]:
    error = _json(named[repr(ErrorAnswer)])
    wants = operation.guard == "admin" or (guarded and operation.guard == "bearer")
    errors = (*operation.errors, 401) if wants else operation.errors
    gives = operation.gives
    answer = {gives: {"schema": {"type": "string"}}} if isinstance(gives, str) else _json(named[repr(gives)])
    binary = BINARY if operation.takes is kserve.InferRequest else {}
    told: dict[str, Any] = {
        "summary": operation.told,
        "responses": {"200": {"description": "Done.", "content": answer | binary}}
        | {str(status): {"description": ERRORS[status], "content": error} for status in sorted(errors)},
    }
    if operation.takes:
        optional = operation.takes is Reload
        told["requestBody"] = {"required": not optional, "content": _json(named[repr(operation.takes)]) | binary}
    if "{version}" in operation.path:
        told["parameters"] = [{"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}]
    if wants:
        told["security"] = [{operation.guard: []}]
    return told


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
