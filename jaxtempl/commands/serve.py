"""`bin/serve` serves a bundle; `bin/serve events export` writes its events to Parquet."""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, date, datetime

from jaxtempl.config import parsing
from jaxtempl.config.serving import ServeConfig, ServeEventsExportConfig
from jaxtempl.errors import UsageError, UserError
from jaxtempl.serve import server
from jaxtempl.serve.events import database
from jaxtempl.serve.events.export import export


def main(argv: Sequence[str]) -> None:
    """Run `bin/serve` or `bin/serve events export`."""
    if list(argv[:2]) == ["events", "export"]:
        export_events(argv[2:])
        return
    config = parsing.parse(ServeConfig, argv)
    print(server.format_config(config), flush=True)
    server.serve(config)


def export_events(argv: Sequence[str]) -> None:
    """Run `bin/serve events export`."""
    config = parsing.parse(ServeEventsExportConfig, argv)
    store = database.redact_url(config.store)
    print(parsing.dump(dataclasses.replace(config, store=store)), flush=True)
    since, until = _parse_day("since", config.since), _parse_day("until", config.until)
    if since and until and since >= until:
        raise UsageError(f"--until={config.until} is not after --since={config.since}; pass the day after the last one")
    if config.out.exists() and not config.overwrite:
        raise UserError(f"{config.out} exists already; --overwrite replaces it, or pass another file as --out")
    exported = export(config.store, config.out, since, until)
    print(f"{config.out}: {exported.suggestions:,} suggestions with {exported.events:,} events of {store}")


def _parse_day(flag: str, text: str) -> datetime | None:
    """Return the start of a day in UTC, or None for an empty text."""
    try:
        return datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC) if text else None
    except ValueError:
        raise UsageError(f"--{flag}={text!r} is not a day; write it as 2026-01-31") from None
