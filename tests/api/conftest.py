"""The API on real servers, spoken to as ASGI: no port, no server process, its lifespan run by hand."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    made = create_app(settings)
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
        "trigger": {"type": "cron", "expression": "*/5 * * * *"},
        **changes,
    }
