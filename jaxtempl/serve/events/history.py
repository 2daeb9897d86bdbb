"""Put experiments in force, with a record of those before them: no restart and no other server may reassign a pair."""

from datetime import datetime

import msgspec
import sqlalchemy as sa

from jaxtempl.serve.events import database
from jaxtempl.serve.events.tables import INSERT, experiments
from jaxtempl.serve.experiments.definition import Experiments, check_growth


def adopt(engine: sa.Engine, new: Experiments, at: datetime) -> None:
    """Put experiments in force from a time on, for all servers of a store.

    Raises:
        UserError: They would reassign pairs of those in force, or the database is unavailable.
    """
    with database.database_errors(engine), engine.begin() as connection:
        database.lock(connection)
        newest = sa.select(experiments.c.content).order_by(experiments.c.since.desc()).limit(1)
        former = msgspec.convert(connection.scalar(newest) or {}, Experiments)
        check_growth(former, new, at)
        if new == former:
            return
        row = {"config_sha256": new.sha256, "since": at, "content": msgspec.to_builtins(new)}
        insert = INSERT[connection.dialect.name](experiments)
        connection.execute(insert.on_conflict_do_update(index_elements=["config_sha256"], set_={"since": at}), row)
