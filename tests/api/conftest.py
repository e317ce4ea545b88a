"""The API on real servers, spoken to as ASGI: no port, no server process, its lifespan run by hand."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, Final

import httpx
import pytest
from fastapi import FastAPI

from app.dispatch.broker import connect
from app.main import create_app
from app.settings import Settings

#: Settings of a plane that is never started.
NOWHERE: Final = {
    "database_url": "postgresql+asyncpg://nowhere/x",
    "redis_url": "redis://nowhere",
    "broker_url": "redis://nowhere",
}


@pytest.fixture(autouse=True)
def patient_with_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """An API gives its broker a second; what is away in these tests refuses, and what is there may be slow."""
    monkeypatch.setattr("app.main.broker.connect", lambda url, timeout_s: connect(url, 30 * timeout_s))


@pytest.fixture
async def within_an_hour() -> None:
    """No full hour comes while the test runs: what is due by the hour is what the test says."""
    left_s = 3600 - time.time() % 3600
    if left_s < 20:
        await asyncio.sleep(left_s + 0.1)


@lru_cache
def _routes(args_limit_kib: int) -> FastAPI:
    """An application to be started with one test's settings after the other's: its routes take as long as a test.

    Its counters of requests go on from test to test; `client_of` has its own.
    """
    return create_app(Settings.load(**NOWHERE, args_limit_kib=args_limit_kib))


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    made = _routes(settings.args_limit_kib)
    made.state.settings = settings
    async with made.router.lifespan_context(made):
        yield made


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://plane") as opened:
        yield opened


@asynccontextmanager
async def client_of(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an API process with these settings."""
    made = create_app(settings)
    transport = httpx.ASGITransport(made)
    async with (
        made.router.lifespan_context(made),
        httpx.AsyncClient(transport=transport, base_url="http://p") as opened,
    ):
        yield opened


@pytest.fixture
async def amqp_client(amqp_settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """The API with RabbitMQ as the broker."""
    async with client_of(amqp_settings) as opened:
        yield opened


@pytest.fixture
async def queue(client: httpx.AsyncClient) -> str:
    """A queue of the namespace `default`."""
    answer = await client.post("/api/v1/queues", json={"name": "default"})
    assert answer.status_code == 201, answer.text
    return "default"


def a_job(**changes: Any) -> dict[str, Any]:
    """A definition that is accepted once there is a queue `default`."""
    return {
        "name": "digest",
        "task": "files.digest",
        "queue": "default",
        "trigger": {"type": "cron", "expression": "0 0 29 2 *"},  # not while a test runs
        **changes,
    }
