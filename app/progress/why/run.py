"""Why a run is where it is: a ranked list of sentences, the most telling first. Pure.

The facts are what one read of the database saw; `app.api.why` gathers them. Each code is stable and stands in the table
of `docs/operations.md`.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from app.progress.moves import NO_WORKER, NOT_REGISTERED_MOST, REVOKED_OUTSIDE, UNHEARD
from app.progress.why.around import (
    SEEN_AGE,
    Surroundings,
    agree,
    common_tasks,
    fresh,
    limits_reached,
    live_workers,
    no_consumer,
    no_scheduler,
    queue_trouble,
    standing,
    task_unknown,
)
from app.progress.why.item import Item
from app.progress.words import counted, duration, few, instant
from app.states import FAILURE, PENDING, RETRY, TERMINAL

#: Workers are forgotten after an hour, and a new one is seen within seconds.
_SURELY_SEEN: Final = timedelta(minutes=1)
#: How many runs before one in a queue are counted.
MOST_AHEAD: Final = 1000
_MOST_TEXT: Final = 300

_TAKER = re.compile(r"^not registered: worker (\S+) without ")
_RESENT = ("lost on the way", "its message ")
_AWAY = re.compile(r"^broker away since (\S+)$")


def why_run(
    now: datetime,
    run: Mapping[str, Any],
    around: Surroundings,
    ahead: int,
    before: Mapping[str, Any] | None = None,
) -> list[Item]:
    """Why this run (a row of `runs`) is where it is; never empty.

    `ahead` are the runs that lie in its queue since before it, counted up to `MOST_AHEAD`; `before` is the run that it
    waits for.
    """
    if run["state"] in TERMINAL:
        return [_ended(run)]
    items = [*_cancel(run), *_deadlines_passed(now, run)]
    if run["state"] != PENDING:
        items += _at_work(now, run, around)
    elif run["waits_for"] is not None:
        items += [*no_scheduler(around), _waits(now, run, before)]
    elif run["dispatch_time"] is None:
        items += _unsent(now, run, around)
    else:
        items += _sent(now, run, around, ahead)
    return [*items, *_deadlines_ahead(now, run)]


def _ended(run: Mapping[str, Any]) -> Item:
    took = "" if run["start_time"] is None else f", {duration(run['end_time'] - run['start_time'])} after its start"
    detail = f"The run ended with {run['state']} at {instant(run['end_time'])}{took}"
    if run["state"] == FAILURE and run["error"]:
        detail += f": {_error(run['error'])}"
    elif run["reason"]:
        detail += f": {run['reason']}"
    return Item("ended", f"{detail}.", time=run["end_time"], worker=run["worker"])


def _error(error: Mapping[str, Any]) -> str:
    message = str(error.get("message") or "").partition("\n")[0]
    return ": ".join(filter(None, (str(error["type"]), message)))[:_MOST_TEXT]


def _cancel(run: Mapping[str, Any]) -> Iterator[Item]:
    if run["cancel"]:
        asked = datetime.fromisoformat(run["cancel"]["time"])
        by = run["cancel"]["by"]
        how = (run["reason"] or "").removeprefix(f"cancel asked by {by}: ")
        what = how if how and how != run["reason"] else "it is being pursued"
        detail = f"A cancel was asked for by {by} at {instant(asked)}: {what}."
        yield Item("cancel_asked", detail, time=asked, by=by)


def _start_deadline(run: Mapping[str, Any]) -> datetime | None:
    waits: bool = run["state"] == PENDING and run["attempt"] == 1
    return run["start_deadline_time"] if waits else None


def _deadlines_passed(now: datetime, run: Mapping[str, Any]) -> Iterator[Item]:
    until, start = run["deadline_time"], _start_deadline(run)
    if start is not None and start <= now:
        detail = f"No worker started it by its start deadline {instant(start)}; it is about to be REVOKED."
        yield Item("start_deadline", detail, time=start)
    if until is not None and until <= now:
        yield Item("deadline", f"Its deadline {instant(until)} has passed; it is about to be FAILURE.", time=until)


def _deadlines_ahead(now: datetime, run: Mapping[str, Any]) -> Iterator[Item]:
    until, start = run["deadline_time"], _start_deadline(run)
    if start is not None and start > now:
        detail = f"A worker must start it by {instant(start)}, in {duration(start - now)}, else it is REVOKED."
        yield Item("start_deadline", detail, time=start)
    if until is not None and until > now:
        detail = f"It must end by {instant(until)}, in {duration(until - now)}, else it is FAILURE."
        yield Item("deadline", detail, time=until)


def _at_work(now: datetime, run: Mapping[str, Any], around: Surroundings) -> Iterator[Item]:
    worker = run["worker"]
    gone = list(_gone(now, run, around))
    yield from gone
    if run["state"] == RETRY:
        again = f"; {run['reason']}" if run["reason"] else ""
        detail = f"The task asked Celery for another try (retry {run['retries']}), which the broker keeps{again}."
        yield Item("worker_retry", detail, time=run["update_time"], worker=worker)
    else:
        start = run["start_time"] or run["update_time"]
        percent = (run["progress"] or {}).get("percent")
        at = "" if percent is None else f" and is at {percent:g}%"
        detail = (
            f"The worker {worker or '(which did not say its name)'} has had it for {duration(now - start)}{at}; "
            f"its last news came {duration(now - run['update_time'])} ago"
        )
        told = gone or run["cancel"] or run["reason"] == REVOKED_OUTSIDE
        if run["reason"] and not told:
            detail += f"; {run['reason']}"
        yield Item("running", f"{detail}.", time=start, worker=worker)
    yield from no_scheduler(around)
    if run["reason"] == REVOKED_OUTSIDE:
        yield _revoked_outside(run)


def _gone(now: datetime, run: Mapping[str, Any], around: Surroundings) -> Iterator[Item]:
    """A worker that does not answer (one whose pool is `solo` cannot while it works), or begins a new life."""
    name = run["worker"]
    if name is not None and (run["reason"] or "").startswith(f"worker {name} was started anew"):
        yield Item("worker_gone", f"The {run['reason']}.", worker=name)
        return
    seen_at = around.catalogue_time
    if name is None or seen_at is None or now - seen_at > SEEN_AGE:
        return
    row = next((one for one in around.workers if one["node"] == name), None)
    if row is None:
        if run["start_time"] is not None and now - run["start_time"] > _SURELY_SEEN:
            yield Item("worker_gone", f"The worker {name} has not been seen in the last hour.", worker=name)
    elif now - row["seen_time"] > SEEN_AGE:
        solo = "; one whose pool is solo does not answer while it works" if row["pool"] == "solo" else ""
        ago = duration(now - row["seen_time"])
        detail = f"The worker {name} was last seen at {instant(row['seen_time'])}, {ago} ago{solo}."
        yield Item("worker_gone", detail, time=row["seen_time"], worker=name)


def _waits(now: datetime, run: Mapping[str, Any], before: Mapping[str, Any] | None) -> Item:
    holder, most = run["waits_for"], run["most_active"]
    how = "one run of its job at a time is" if most == 1 else f"{most} runs of its job at a time are"
    detail = f"At most {how} active, and the run {holder} is before it"
    if before is None or before["end_time"] is not None:
        return Item("waits_for_run", f"{detail}; that one has ended, so it is about to go.", run_id=holder)
    verb = "waits as well" if before["waits_for"] is not None else standing(now, before)
    return Item(
        "waits_for_run", f"{detail} ({verb}).", time=before["create_time"], run_id=holder, worker=before["worker"]
    )


def _unsent(now: datetime, run: Mapping[str, Any], around: Surroundings) -> list[Item]:
    reason, due = run["reason"] or "", run["due_time"]
    items = [*no_scheduler(around), *queue_trouble(run["queue"], around.queue)]
    if not items and (away := _AWAY.match(reason)):
        since = datetime.fromisoformat(away[1])
        detail = f"The broker has been away since {instant(since)}, for {duration(now - since)}."
        items.append(Item("broker_away", detail, time=since))
    unknown = list(task_unknown(now, run["queue"], run["task"], around))
    if not items and not unknown and due <= now and run["claim_time"] is None:
        items += limits_reached(now, run["queue"], around.limits)
    items += [*unknown, *_taken(now, run, around, held=bool(unknown))]
    if due > now and not run["not_registered"]:
        items.append(_later(now, run))
    elif reason.startswith("worker lost"):
        detail = f"The worker of attempt {run['attempt'] - 1} was lost; attempt {run['attempt']} is about to be sent."
        items.append(Item("worker_lost", detail))
    elif reason.startswith(_RESENT):
        items.append(Item("lost_resent", f"Its message is about to be sent again: {_without_tail(reason)}."))
    if not items:
        waits = duration(now - due)
        detail = f"It is about to be sent to the queue {run['queue']}; it has been due for {waits}."
        items.append(Item("sending", detail, time=due, queue=run["queue"]))
    return items


def _later(now: datetime, run: Mapping[str, Any]) -> Item:
    due, reason = run["due_time"], run["reason"] or ""
    when = f"at {instant(due)}, in {duration(due - now)}"
    if reason == "unroutable":
        detail = f"The broker gave its message back, for no queue is bound for its route; it is sent again {when}."
        return Item("unroutable", detail, time=due, queue=run["queue"])
    if reason.startswith(_RESENT):
        detail = f"Its message goes out again {when}: {_without_tail(reason)}."
        return Item("lost_resent", detail, time=due, queue=run["queue"])
    if run["attempts"] and reason.startswith("retry backoff"):
        ended = run["attempts"][-1]
        error = _error(ended["error"]) if ended.get("error") else ended["state"]
        detail = f"Attempt {ended['attempt']} failed with {error}; attempt {run['attempt']} goes out {when}."
        return Item("retry_backoff", detail, time=due, worker=ended.get("worker"))
    return Item("refused", f"It is tried again {when}{': ' + reason if reason else ''}.", time=due, queue=run["queue"])


def _without_tail(reason: str) -> str:
    return reason.removesuffix(": sent again")


def _taken(now: datetime, run: Mapping[str, Any], around: Surroundings, *, held: bool = False) -> Iterator[Item]:
    """Workers that do not know the task took its messages and gave them up. `held`: nothing is sent when it is due."""
    times = run["not_registered"]
    if not times:
        return
    said = _TAKER.match(run["reason"] or "")
    worker = said[1] if said else None
    who = (
        f"The worker {worker}, which does not register {run['task']},"
        if worker
        else f"A worker that does not register {run['task']}"
    )
    detail = f"{who} took it and gave it up ({counted(times, 'time', 'times')} so far)"
    suspects = [one["node"] for one in live_workers(now, around) if run["task"] not in one["tasks"]]
    if suspects:
        detail += f"; of the live workers on the queue, {few(suspects)} {agree(suspects, 'does', 'do')} not register it"
    common = common_tasks(now, around)
    if times >= NOT_REGISTERED_MOST and common is not None and run["task"] not in common:
        detail += "; it waits until every live worker on the queue does"
    elif run["dispatch_time"] is None and run["due_time"] > now and not held:
        detail += f"; it goes out again at {instant(run['due_time'])}, in {duration(run['due_time'] - now)}"
    yield Item(
        "not_registered_taken",
        f"{detail}.",
        time=run["due_time"] if run["due_time"] > now else None,
        queue=run["queue"],
        task=run["task"],
        worker=worker,
        workers=suspects or None,
        count=times,
    )


def _sent(now: datetime, run: Mapping[str, Any], around: Surroundings, ahead: int) -> Iterator[Item]:
    sent = run["dispatch_time"]
    nobody = list(no_consumer(now, run["queue"], around))
    if not nobody and run["reason"] == NO_WORKER and fresh(now, around) is None:
        nobody = [Item("no_worker", f"When it was sent, no worker consumed {run['queue']}.", queue=run["queue"])]
    yield from nobody
    yield from task_unknown(now, run["queue"], run["task"], around)
    yield from _taken(now, run, around)
    if run["reason"] == REVOKED_OUTSIDE:
        yield _revoked_outside(run)
    if run["reason"] == UNHEARD:
        detail = (
            f"It was sent {duration(now - sent)} ago and no worker has said that it started; "
            "it is not sent again as long as a worker may have it."
        )
        yield Item("unheard", detail, time=sent, queue=run["queue"])
    yield _in_the_queue(now, run, around, ahead)
    if run["dispatches"] > run["first_dispatch"]:
        times = run["dispatches"] - run["first_dispatch"] + 1
        yield Item("lost_resent", f"Its message was lost on the way; it was sent {times} times.", count=times)
    yield from no_scheduler(around)


def _in_the_queue(now: datetime, run: Mapping[str, Any], around: Surroundings, ahead: int) -> Item:
    sent, takers = run["dispatch_time"], live_workers(now, around)
    others = counted(ahead, "other run", "other runs") if ahead else "no other run"
    many = "at least " if ahead >= MOST_AHEAD else ""
    detail = f"It has been in the queue {run['queue']} for {duration(now - sent)}, behind {many}{others}"
    sighting = fresh(now, around)
    if sighting is not None and sighting["ready"] is not None:
        waits = counted(sighting["ready"], "message", "messages")
        detail += f"; {waits} waited there {duration(now - sighting['look_time'])} ago"
    busy = [f"{one['node']} works at {_load(one)}" for one in takers if one["active"] is not None]
    if busy:
        detail += f"; {few(busy)}"
    elif takers:
        names = [one["node"] for one in takers]
        detail += f"; {few(names)} {agree(names)} it"
    workers = [one["node"] for one in takers] or None
    return Item(
        "dispatched_waiting", f"{detail}.", time=sent, queue=run["queue"], workers=workers, count=min(ahead, MOST_AHEAD)
    )


def _load(worker: Mapping[str, Any]) -> str:
    of = f" of {worker['concurrency']}" if worker["concurrency"] else ""
    return f"{worker['active']}{of}"


def _revoked_outside(run: Mapping[str, Any]) -> Item:
    detail = "A worker says that somebody revoked it outside jobplane; without other news it is REVOKED soon."
    return Item("revoked_outside", detail, time=run["update_time"], worker=run["worker"])
