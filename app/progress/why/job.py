"""Why a job is not running now, and when it will: a ranked list of sentences, the most telling first. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from app.progress.why.around import Surroundings, no_consumer, no_scheduler, queue_trouble, standing, task_unknown
from app.progress.why.item import Item
from app.progress.words import counted, duration, instant

#: A tick is this much behind before anybody is told.
_LATE: Final = timedelta(seconds=5)

_SKIPS: Final = {
    "coalesced": "coalesced into one run",
    "missed": "past their catch-up window",
    "overlap": "an earlier run had not ended",
    "paused": "the job was paused",
    "limit": "there were too many of them",
}

_FURTHER: Final = {
    "buffer_one": "; of further times the first waits for it",
    "buffer_all": "; further times wait in line",
    "cancel_other": "; the next time asks for its cancel and waits for its end",
    "terminate_other": "; the next time terminates it and begins",
}


def why_job(
    now: datetime,
    job: Mapping[str, Any],
    around: Surroundings,
    live: Sequence[Mapping[str, Any]],
    live_count: int,
    of_oldest: Sequence[Item],
    skip: Mapping[str, Any] | None,
    backfill: Mapping[str, Any] | None = None,
) -> list[Item]:
    """Why this job (a row of `jobs`) is not running now, or when it will; never empty.

    `live` are the oldest of its `live_count` runs that have not ended, those that stand apart left out, `of_oldest` the
    why of the first of them, `skip` its newest row of `skips`, `backfill` the view of the one that has not ended.
    """
    return [
        *_out_of_schedule(job),
        *no_scheduler(around),
        *_overdue(now, job),
        *_live_runs(now, job, live, live_count, of_oldest),
        *_backfill(backfill),
        *(queue_trouble(job["queue"], around.queue)),
        *task_unknown(now, job["queue"], job["task"], around),
        *no_consumer(now, job["queue"], around),
        *_contract(job),
        *_next_time(now, job),
        *_last_skip(skip),
    ]


def _out_of_schedule(job: Mapping[str, Any]) -> Iterator[Item]:
    if not job["enabled"]:
        yield Item("disabled", "The job is disabled by its definition.")
    if job["pause_time"] is not None:
        reason = f": {job['pause_reason']}" if job["pause_reason"] else ""
        detail = f"The job was paused by {job['pause_by']} at {instant(job['pause_time'])}{reason}."
        yield Item("paused", detail, time=job["pause_time"], by=job["pause_by"])
    if job["problem"] is not None:
        yield Item("parked", f"The job is parked until its next edit: {job['problem']}.")
    if job["next_run_time"] is None and job["enabled"] and job["pause_time"] is None and job["problem"] is None:
        yield Item("finished", "Its trigger names no further time.", time=job["last_run_time"])


def _overdue(now: datetime, job: Mapping[str, Any]) -> Iterator[Item]:
    due = job["next_run_time"]
    if due is not None and now - due > _LATE:
        detail = f"It was due at {instant(due)}, {duration(now - due)} ago, and the schedulers have not come to it."
        yield Item("overdue", detail, time=due)


def _live_runs(
    now: datetime,
    job: Mapping[str, Any],
    live: Sequence[Mapping[str, Any]],
    count: int,
    of_oldest: Sequence[Item],
) -> Iterator[Item]:
    if not live:
        return
    oldest = live[0]
    facts: dict[str, Any] = {"worker": oldest["worker"], "run_id": oldest["id"], "count": count, "items": of_oldest}
    if job["overlap"] == "skip":
        detail = (
            f"The run {oldest['id']} has not ended ({standing(now, oldest)}), and the times until then are skipped."
        )
        yield Item("overlap", detail, time=oldest["create_time"], **facts)
    else:
        runs = counted(count, "run has", "runs have")
        detail = f"{runs} not ended; the oldest is {oldest['id']} ({standing(now, oldest)})"
        detail += f"{_FURTHER.get(job['overlap'], '')}."
        if job["max_active"] is not None:
            detail += f" At most {counted(job['max_active'], 'run is', 'runs are')} active at once; further ones wait."
        yield Item("live_runs", detail, time=oldest["create_time"], **facts)


def _backfill(backfill: Mapping[str, Any] | None) -> Iterator[Item]:
    if backfill is None:
        return
    progress, active = backfill["progress"], backfill["counts"]["active"]
    state = "is paused" if backfill["state"] == "PAUSED" else "is active"
    reason = f" ({backfill['reason']})" if backfill["reason"] else ""
    runs = counted(active, "run of it has", "runs of it have")
    beside = ", in nobody's way" if active and backfill["overlap"] == "allow" else ""
    detail = (
        f"A backfill from {instant(backfill['from'])} to {instant(backfill['to'])} {state}{reason}: "
        f"{progress['current']} of {counted(progress['total'], 'time is', 'times are')} dealt with, {runs} not "
        f"ended{beside}."
    )
    yield Item(
        "backfill",
        detail,
        time=backfill["create_time"],
        backfill_id=backfill["id"],
        by=backfill["author"],
        count=active,
    )


def _contract(job: Mapping[str, Any]) -> Iterator[Item]:
    if job["contract_problem"] is not None:
        detail = f"Its arguments do not fit the task as live workers register it: {job['contract_problem']}."
        yield Item("contract_problem", detail, task=job["task"])


def _next_time(now: datetime, job: Mapping[str, Any]) -> Iterator[Item]:
    due = job["next_run_time"]
    if due is not None and now - due <= _LATE:
        when = f"in {duration(due - now)}" if due > now else "now"
        yield Item("next_time", f"It is due next at {instant(due)}, {when}.", time=due)


def _last_skip(skip: Mapping[str, Any] | None) -> Iterator[Item]:
    if skip is None:
        return
    first, last, count = skip["first_time"], skip["last_time"], skip["count"]
    many = "" if skip["exact"] else "at least "
    when = f"at {instant(last)}" if count == 1 else f"from {instant(first)} to {instant(last)}"
    verb = "was" if count == 1 else "were"
    because = _SKIPS.get(skip["reason"], skip["reason"])
    detail = f"{many}{counted(count, 'scheduled time', 'scheduled times')} {when} {verb} skipped: {because}."
    detail = detail[0].upper() + detail[1:]
    yield Item("last_skip", detail, time=last, run_id=skip["run_id"], count=count)
