"""Named points where a test may stop, kill, delay or fail us; nothing in production.

`JOBPLANE_FAULTS` holds `point=action` pairs, comma separated: `tick.before_commit=kill`, `record.before_commit=raise`,
`dispatch.after_claim=delay:2`, `dispatch.after_publish=stop`. With `*n` behind the action only the n-th passing acts:
`tick.after_commit=kill*3`. The point stands in the code as `await faults.at("tick.after_commit")`.
"""

import asyncio
import itertools
import os
import signal
from typing import Final

#: Every point there is; a name that is not here is refused at start, so that a test cannot aim beside the mark.
POINTS: Final = frozenset(
    {
        "api.before_commit",
        "api.after_commit",
        "tick.after_select",
        "tick.before_commit",
        "tick.after_commit",
        "backfill.after_claim",
        "backfill.before_commit",
        "backfill.after_commit",
        "dispatch.after_claim",
        "dispatch.before_publish",
        "dispatch.before_confirm",
        "dispatch.after_publish",
        "dispatch.after_mark",
        "record.after_receive",
        "record.before_commit",
        "record.after_commit",
        "reap.before_take",
        "reap.after_take",
        "reap.after_commit",
        "cancel.after_take",
        "cancel.before_commit",
        "cancel.after_commit",
        "feed.before_send",
        "sweep.before_commit",
    }
)


class InjectedFault(Exception):
    """What the action `raise` raises."""


def parse(text: str) -> dict[str, str]:
    """The actions of `JOBPLANE_FAULTS`, by point; ValueError for a point or an action that does not exist."""
    actions: dict[str, str] = {}
    for pair in filter(None, text.split(",")):
        point, _, action = pair.partition("=")
        if point not in POINTS:
            raise ValueError(f"no fault point {point!r}")
        kind, _, nth = action.partition("*")
        name, _, seconds = kind.partition(":")
        if name not in {"kill", "stop", "raise", "delay"} or (name == "delay" and not float(seconds) >= 0):
            raise ValueError(f"no fault action {action!r}")
        if nth and int(nth) < 1:
            raise ValueError(f"passings are counted from 1: {action!r}")
        actions[point] = action
    return actions


_actions: dict[str, str] = {}
_passings: dict[str, "itertools.count[int]"] = {}


def arm(text: str) -> None:
    """Set what happens at the points of this process, as `parse` reads it; an empty text disarms all."""
    global _actions
    _actions = parse(text)
    _passings.clear()


async def at(point: str) -> None:
    """A named point. Does nothing unless a test has armed it."""
    if not _actions:
        return
    assert point in POINTS, point
    action = _actions.get(point)
    if action is None:
        return
    kind, _, nth = action.partition("*")
    passing = next(_passings.setdefault(point, itertools.count(1)))
    if nth and passing != int(nth):
        return
    name, _, seconds = kind.partition(":")
    if name == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif name == "delay":
        await asyncio.sleep(float(seconds))
    else:
        raise InjectedFault(point)
