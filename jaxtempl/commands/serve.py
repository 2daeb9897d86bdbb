"""`bin/serve`, and `bin/serve events export`."""

from collections.abc import Sequence

from jaxtempl.config import parsing
from jaxtempl.config.serving import ServeConfig
from jaxtempl.serve import server
from jaxtempl.serve.events import export


def main(argv: Sequence[str]) -> None:
    """Run `bin/serve`."""
    if list(argv[:2]) == ["events", "export"]:
        export.main(argv[2:])
        return
    config = parsing.parse(ServeConfig, argv)
    print(server.format_config(config), flush=True)
    server.serve(config)
