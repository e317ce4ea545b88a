"""Where a run stands: what a move may depend on and change. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Self, TypeAlias
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Standing:
    """The columns of a run that moves read and change; `version` is raised by whoever applies the move."""

    id: UUID
    task: str
    state: str
    reason: str | None
    waits_for: UUID | None
    most_active: int | None
    attempt: int
    lost: int
    attempts: list[dict[str, Any]]
    progress: dict[str, Any] | None
    result: Any
    error: dict[str, Any] | None
    worker: str | None
    leased: bool
    retries: int
    retry: Mapping[str, Any]
    due_time: datetime
    claim_time: datetime | None
    claimed_by: str | None
    dispatches: int
    first_dispatch: int
    dispatch_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    start_deadline_time: datetime | None
    deadline_time: datetime | None
    not_registered: int
    late: list[dict[str, Any]]
    cancel: dict[str, Any] | None
    cancel_next_time: datetime | None
    version: int

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        return cls(**{field.name: row[field.name] for field in fields(cls)})


#: One step of a run: the new standing, or None if the step does not apply or brings no news.
Move: TypeAlias = Callable[[Standing], Standing | None]
