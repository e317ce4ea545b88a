"""Real processes, on servers of the test's own."""

from collections.abc import Callable

import pytest

from tests.acceptance.plane import Plane
from tests.processes import Process


@pytest.fixture
def plane(database_url: str, redis_url: str, start_process: Callable[..., Process]) -> Plane:
    """A plane with Valkey as its broker; nothing of it runs yet."""
    return Plane(start_process, database_url, redis_url, redis_url)


@pytest.fixture
def amqp_plane(database_url: str, redis_url: str, amqp_url: str, start_process: Callable[..., Process]) -> Plane:
    """A plane with RabbitMQ as its broker; nothing of it runs yet."""
    return Plane(start_process, database_url, redis_url, amqp_url)
