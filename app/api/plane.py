"""What an API process holds, and how an endpoint gets at it."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from redis.asyncio import Redis
from starlette.requests import HTTPConnection

from app.database import Database
from app.dispatch.broker import Broker
from app.feed.hub import Hub
from app.logs.store import Store
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class Plane:
    """The parts of one API process; `app.state.plane` from the start of its lifespan to the end."""

    settings: Settings
    database: Database
    redis: Redis
    hub: Hub
    #: Logs and large results of runs.
    store: Store
    #: Asked now and then, bounded to a second; nothing is published here.
    broker: Broker


def plane_of(connection: HTTPConnection) -> Plane:
    """The plane of a request or socket."""
    plane: Plane = connection.app.state.plane
    return plane


PlaneOf = Annotated[Plane, Depends(plane_of)]
