"""The HTTP interface: routes, middleware, tokens, and the OpenAPI and KServe protocols."""
