"""Builds the API: its parts for as long as it lives, its routers, and what surrounds every request."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import Final

import structlog
from fastapi import APIRouter, FastAPI
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from starlette.middleware.gzip import GZipMiddleware

from app import faults, log
from app.api import (
    backfills,
    catalogue,
    documents,
    exports,
    feed,
    files,
    health,
    job_actions,
    jobs,
    ledger,
    logs,
    problems,
    queues,
    runs,
    schedule,
    simulations,
    versions,
    why,
)
from app.api.metrics import PlaneCollector, Requests, registry_of
from app.api.middleware import BodyLimit, Surroundings
from app.api.plane import Plane
from app.api.server import Server, config
from app.database import Database
from app.dispatch import broker
from app.feed.hub import Hub
from app.logs.store import Store
from app.settings import Settings

logger = structlog.get_logger()

#: A start waits this long for a database that is not there, or not migrated, before it gives up.
_WAIT_FOR_DATABASE_S: Final = 30.0
#: Room for a definition around its args and kwargs, so that too large args are named and not just the body.
_BODY_LIMIT = 4 * 1024 * 1024

_DESCRIPTION = "Scheduled and ad-hoc Celery jobs: define them, run them, follow them."


def create_app(settings: Settings) -> FastAPI:
    """The API as an ASGI application; connects to its parts when it starts and not before."""
    collector = PlaneCollector()
    registry = registry_of(collector)
    app = FastAPIOffline(
        title="jobplane",
        description=_DESCRIPTION,
        version=version("jobplane"),
        docs_url="/docs",
        redoc_url=None,
        openapi_url="/openapi.json",
        lifespan=_lifespan,
        generate_unique_id_function=_operation_id,
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.collector = collector
    app.state.registry = registry
    app.add_middleware(BodyLimit, limit=_BODY_LIMIT + 2 * 1024 * settings.args_limit_kib)
    app.add_middleware(GZipMiddleware, minimum_size=1000, compresslevel=5)
    app.add_middleware(Surroundings, requests=Requests(registry))
    problems.install(app)
    documents.install(app)
    api = APIRouter(prefix="/api/v1")
    for router in (
        exports.router,  # before the jobs, for its path looks like the id of one
        files.router,
        jobs.router,
        job_actions.router,
        job_actions.previews,
        simulations.router,
        schedule.router,
        versions.router,
        ledger.router,
        backfills.of_jobs,
        backfills.router,
        runs.router,
        logs.router,
        why.router,
        queues.router,
        catalogue.router,
        feed.router,
    ):
        api.include_router(router)
    app.include_router(api)
    app.include_router(health.router)
    app.add_api_route("/", _to_the_docs, include_in_schema=False)
    return app


async def _to_the_docs() -> RedirectResponse:
    return RedirectResponse("/docs")


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    async with AsyncExitStack() as stack:
        async with asyncio.timeout(_WAIT_FOR_DATABASE_S):
            database = await Database.when_ready(settings, "api")
        stack.push_async_callback(database.close)
        redis = _redis(settings)
        stack.push_async_callback(redis.aclose)
        asked = broker.connect(settings.broker_url.get_secret_value(), timeout_s=1)
        stack.push_async_callback(asked.close)
        hub = Hub(database, redis, settings)
        stack.push_async_callback(hub.stop)
        await hub.start()
        app.state.probes = health.Probes(asked)
        app.state.plane = Plane(settings, database, redis, hub, Store(settings.log_store), asked)
        yield


def _redis(settings: Settings) -> Redis:
    """A client that gives up soon: hints can be missed, and a cancel that finds no Redis says so."""
    client: Redis = Redis.from_url(
        settings.redis_url.get_secret_value(),
        socket_connect_timeout=2,
        socket_timeout=5,
        health_check_interval=15,
        retry=Retry(NoBackoff(), 1),
    )
    return client


def _operation_id(route: APIRoute) -> str:
    return route.name


def serve(settings: Settings) -> None:
    """Run an API process until SIGTERM or SIGINT; sockets are told to reconnect elsewhere first.

    SystemExit if it cannot start.
    """
    log.configure(settings, "api")
    faults.arm(settings.faults)
    app = create_app(settings)

    async def drain() -> None:
        if hasattr(app.state, "plane"):
            await app.state.plane.hub.drain()

    # Our own log lines tell of each request that failed; uvicorn's would repeat every one that did not.
    options = {"log_config": None, "access_log": False, "server_header": False, "proxy_headers": False}
    server = Server(config(app, host=settings.host, port=settings.port, **options, timeout_keep_alive=75), drain)
    for asked in (signal.SIGINT, signal.SIGTERM):
        # uvicorn handles them while it runs, and gives them back behind it: then everything is ended already.
        signal.signal(asked, lambda *_: None)
    server.run()
    if not server.started:
        raise SystemExit(3)
