"""What serves a bundle: no JAX, no Flax, nothing of training."""

from collections.abc import Sequence

from jaxtempl import config
from jaxtempl.config import ServeConfig


def main(argv: Sequence[str]) -> None:
    """`bin/serve`, and `bin/serve events export`."""
    if list(argv[:2]) == ["events", "export"]:
        from jaxtempl.serve import events_export

        return events_export.main(argv[2:])
    asked = config.parse(ServeConfig, argv)
    from jaxtempl.serve import server

    print(server.resolved(asked), flush=True)
    return server.serve(asked)
