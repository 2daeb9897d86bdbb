"""The HTTP surface: routes, middleware, protocols."""
