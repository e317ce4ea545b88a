"""`/healthz`, `/readyz`, `/metrics`: whether this process answers, which parts it finds, and its figures."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from app.api import documents, queries
from app.api.metrics import PlaneCollector
from app.api.plane import Plane, PlaneOf
from app.api.writes import json_response
from app.dispatch.broker import Broker

router = APIRouter(tags=["health"])

#: No part may keep the answer waiting for longer.
_CHECK_S: Final = 1.0
#: Probes come every few seconds from several sides; the broker need not notice each of them.
_BROKER_CACHE_S: Final = 3.0

Part = Literal["database", "redis", "broker", "scheduler"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether a part answers, and what there is to say of it."""

    ok: bool
    detail: str


class Probes:
    """Looks at each part, bounded in time. One per application, for it remembers what the broker last said."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._broker_finding = Finding(False, "not looked at yet")
        self._broker_until = 0.0
        self._looking = asyncio.Lock()

    async def look(self, plane: Plane, parts: list[Part]) -> dict[Part, Finding]:
        """What was found of these parts, all looked at together."""
        checks: dict[Part, Callable[[Plane], Awaitable[Finding]]] = {
            "database": _database,
            "redis": _redis,
            "broker": self._broker_of,
            "scheduler": _scheduler,
        }
        findings = await asyncio.gather(*(_bounded(checks[part](plane)) for part in parts))
        return dict(zip(parts, findings, strict=True))

    async def _broker_of(self, _: Plane) -> Finding:
        async with self._looking:
            if time.monotonic() >= self._broker_until:
                self._broker_finding = await _bounded(self._ask_broker())
                self._broker_until = time.monotonic() + _BROKER_CACHE_S
        return self._broker_finding

    async def _ask_broker(self) -> Finding:
        await self._broker.check()
        return Finding(True, "answers")


async def _bounded(check: Awaitable[Finding]) -> Finding:
    try:
        async with asyncio.timeout(_CHECK_S):
            return await check
    except TimeoutError:
        return Finding(False, f"no answer within {_CHECK_S:g} s")
    except Exception as error:  # whatever it is, the part is not ready
        return Finding(False, type(error).__name__)


async def _database(plane: Plane) -> Finding:
    async with plane.database.reading() as connection:
        await connection.fetchval("SELECT 1")
    return Finding(True, "answers")


async def _redis(plane: Plane) -> Finding:
    await plane.redis.ping()
    return Finding(True, "answers")


async def _scheduler(plane: Plane) -> Finding:
    async with plane.database.reading() as connection:
        alive = (await queries.plane_figures(connection))["schedulers"]
    return Finding(alive > 0, f"{alive} alive")


@router.get("/healthz")
async def get_health() -> dict[str, str]:
    """This process answers."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    responses={
        200: {"content": {"application/json": {"example": {"status": "ready", "parts": {"database": {"ok": True}}}}}},
        422: documents.problem(422),
        503: {"description": "A part is away", "content": {"application/json": {"schema": {"type": "object"}}}},
    },
)
async def get_readiness(
    plane: PlaneOf,
    request: Request,
    part: Annotated[list[Part] | None, Query(description="look at these alone; at all of them if left out")] = None,
) -> Response:
    """Whether the whole plane is ready, part by part. 503 if any part that was asked for is away.

    A load balancer should ask for `?part=database` alone: the API does its work while the others are away.
    """
    probes: Probes = request.app.state.probes
    findings = await probes.look(plane, part or ["database", "redis", "broker", "scheduler"])
    ready = all(finding.ok for finding in findings.values())
    body: dict[str, Any] = {
        "status": "ready" if ready else "not ready",
        "parts": {name: {"ok": finding.ok, "detail": finding.detail} for name, finding in findings.items()},
    }
    return json_response(body, 200 if ready else 503)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def get_metrics(plane: PlaneOf, request: Request) -> Response:
    """The figures of this process and of the plane, for Prometheus."""
    collector: PlaneCollector = request.app.state.collector
    registry: CollectorRegistry = request.app.state.registry
    await collector.refresh(plane.database)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
