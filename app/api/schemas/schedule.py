"""What all jobs will fire, as it is shown."""

from datetime import datetime
from uuid import UUID

from pydantic import ConfigDict, Field

from app.api.schemas.fields import Out


class MinuteOut(Out):
    """A minute in which something fires."""

    time: datetime
    count: int
    queues: dict[str, int] = Field(description="how many of them go to each queue")


class FiringOut(Out):
    """A time of a job that is to come."""

    time: datetime = Field(description="the nominal time")
    fire_time: datetime = Field(description="the same with the job's jitter")
    job_id: UUID
    namespace: str
    name: str
    task: str
    queue: str


class ScheduleOut(Out):
    """What fires from `from` up to, but not at, `to`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "from": "2026-03-01T23:00:00Z",
                    "to": "2026-03-02T00:00:00Z",
                    "total": 2,
                    "minutes": [
                        {"time": "2026-03-01T23:00:00Z", "count": 2, "queues": {"game_community_default": 2}},
                    ],
                    "times": [
                        {
                            "time": "2026-03-01T23:00:00Z",
                            "fire_time": "2026-03-01T23:00:00Z",
                            "job_id": "019a8b7e-6c5d-7a10-8f3e-5b6d1c2e4f70",
                            "namespace": "default",
                            "name": "calc_post_score",
                            "task": "apps.tasks.scheduled_job.calc_post_score",
                            "queue": "game_community_default",
                        }
                    ],
                    "more": True,
                }
            ]
        }
    )

    begin: datetime = Field(alias="from")
    end: datetime = Field(alias="to")
    total: int
    minutes: list[MinuteOut] = Field(description="only those in which something fires, in order")
    times: list[FiringOut] = Field(description="the first `limit` of them")
    more: bool = Field(description="whether there are more than `times` tells")
