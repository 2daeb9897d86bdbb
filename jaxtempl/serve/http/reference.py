"""GET /docs: what /openapi.json says, for people; one page without scripts that needs nothing from elsewhere."""

from collections.abc import Mapping
from typing import Any

import jinja2

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


def page(document: Mapping[str, Any]) -> str:
    """The page of an OpenAPI document."""
    operations = [
        {"method": method.upper(), "path": path, **told}
        for path, methods in document["paths"].items()
        for method, told in methods.items()
    ]
    return _PAGE.render(operations=operations, schemas=document["components"]["schemas"], info=document["info"])


def kind(schema: Mapping[str, Any]) -> str:
    """A schema in words: its type, or the name of the struct that it points to."""
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(kind(each) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {kind(schema['items'])}" if schema.get("items") else "list"
    return schema.get("format") or schema.get("type", "anything")


_ENVIRONMENT = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
_ENVIRONMENT.filters["kind"] = kind
_PAGE = _ENVIRONMENT.from_string("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>jaxtempl: the routes</title>
<style>
:root { --ink: #1b1f24; --quiet: #5c6670; --line: #dfe3e8; --paper: #fff; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --quiet: #9aa5b1; --line: #343b44; --paper: #14171b; }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 54rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; }
h2 { font-size: 1.05rem; margin: 2rem 0 .25rem; overflow-wrap: anywhere; }
h2 small { color: var(--quiet); font-weight: 600; margin-right: .5rem; }
p { margin: .25rem 0; }
.told { white-space: pre-line; }
.quiet { color: var(--quiet); font-size: .9rem; }
table { border-collapse: collapse; width: 100%; font-size: .94rem; }
td { border-bottom: 1px solid var(--line); padding: .3rem .8rem .3rem 0; vertical-align: baseline; }
td:first-child { width: 11rem; }
a { color: inherit; }
code { font-size: .92em; }
</style>
</head>
<body>
<main>
<h1>{{ info.title }} {{ info.version }}: the routes</h1>
<p class="quiet">The same for programs: <a href="/openapi.json">/openapi.json</a>. Every error is an
<a href="#ErrorAnswer">ErrorAnswer</a>.</p>
{% macro named(content) %}
{% for schema in (content or {}).values() if schema.schema %}
{% set name = schema.schema | kind %}
{% set struct = name.split(" ")[-1] %}
{% if struct in schemas %}<a href="#{{ struct }}">{{ name }}</a>{% else %}{{ name }}{% endif %}
{% endfor %}
{% endmacro %}
{% for operation in operations %}
<h2><small>{{ operation.method }}</small><code>{{ operation.path }}</code></h2>
<p>{{ operation.summary }}</p>
<p class="quiet">{% if operation.requestBody %}takes {{ named(operation.requestBody.content) }}, {% endif %}
gives {{ named(operation.responses["200"].content) }}{% if operation.security %}; wants a token{% endif %}</p>
<table>
{% for status, response in operation.responses.items() if status != "200" %}
<tr><td>{{ status }}</td><td>{{ response.description }}</td></tr>
{% endfor %}
</table>
{% endfor %}
<h1>What is sent and answered</h1>
{% for name, schema in schemas.items() %}
<h2 id="{{ name }}"><code>{{ name }}</code></h2>
<p class="quiet told">{{ schema.description }}</p>
<table>
{% for field, told in (schema.properties or {}).items() %}
<tr><td><code>{{ field }}</code></td><td>{{ told | kind }}{% if field not in (schema.required or []) %},
may be left out{% endif %}</td></tr>
{% endfor %}
</table>
{% endfor %}
</main>
</body>
</html>
""")
