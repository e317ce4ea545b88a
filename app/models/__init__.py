"""The tables, with every constraint and index. What can be a constraint is one; Python only says it nicer.

Instants are `timestamptz` in UTC and end in `_time`; durations are seconds and end in `_s`. SQLModel classes declare
the tables for migrations and for statements that vary; rows travel as the driver's records.
"""

from app.models.jobs import DEFINITION, RATE_PATTERN, Job, JobVersion, Queue, QueuePlace, QueueSighting, Skip
from app.models.plane import IdempotencyKey, Lease, Plane, Process, Worker
from app.models.runs import Backfill, RefusedReport, Run, RunEvent, RunLog

__all__ = [
    "DEFINITION",
    "RATE_PATTERN",
    "Backfill",
    "IdempotencyKey",
    "Job",
    "JobVersion",
    "Lease",
    "Plane",
    "Process",
    "Queue",
    "QueuePlace",
    "QueueSighting",
    "RefusedReport",
    "Run",
    "RunEvent",
    "RunLog",
    "Skip",
    "Worker",
]
