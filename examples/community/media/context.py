"""What a worker enters around every call of a task: the settings, and a database session.

`JOBPLANE_WORKER_CONTEXT=media.context:call_context`. A bound task finds what is yielded here as `self.context`.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlalchemy.schema import CreateTable
from sqlmodel import Session, SQLModel, create_engine

from media import models
from media.samples import make
from media.settings import Settings, current


@dataclass(frozen=True, slots=True)
class Media:
    """What a task of this service works with."""

    settings: Settings
    session: Session


@contextmanager
def call_context() -> Iterator[Media]:
    """A session for one call; what the call has not committed is rolled back."""
    with Session(_engine()) as session:
        yield Media(current(), session)


@functools.cache
def _engine() -> Engine:
    """One per process, made at its first call; the first of all processes makes the table and the sample files."""
    settings = current()
    settings.stored.mkdir(parents=True, exist_ok=True)
    make(settings.incoming)
    engine = create_engine(settings.database_url, connect_args={"timeout": 30})
    with engine.begin() as connection:
        connection.execute(CreateTable(SQLModel.metadata.tables[models.File.__tablename__], if_not_exists=True))
    return engine
