"""What workers said, as facts. Pure; these are a stranger's words, so what is not of the expected kind is left out."""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from app.catalogue.ask import Heard
from app.catalogue.seen import Seen, of_answers
from app.doctor.facts import Place, Worker

#: The options of tasks that are asked for: what a task says itself overrides the worker's configuration.
OPTIONS: Final = ("track_started", "acks_late", "reject_on_worker_lost", "time_limit", "serializer")

_OPTION: Final = re.compile(r"(\w+)=(\S*)")
_RESULTS: Final = re.compile(r"\bresults:(\S+)")
#: Two tellings of one process' uptime may lie so far apart, in seconds.
_SAME_UPTIME_S: Final = 5
_PORTS: Final = {"redis": 6379, "rediss": 6379}


def workers(
    heard: Heard, ours: Mapping[str, Seen], last_seen: Mapping[str, Mapping[str, Any]], now: datetime
) -> list[Worker]:
    """All that answered, sent a heartbeat, say in Redis that they live, or were seen in the last half minute."""
    answers: dict[str, dict[str, list[Any]]] = {}
    for question, node, answer in heard.answers:
        answers.setdefault(node, {}).setdefault(question, []).append(answer)
    nodes = answers.keys() | ours.keys() | last_seen.keys() | {beat.node for beat in heard.beats}
    return [
        _worker(node, answers.get(node, {}), heard, ours.get(node), last_seen.get(node), now) for node in sorted(nodes)
    ]


def _worker(
    node: str,
    answers: Mapping[str, list[Any]],
    heard: Heard,
    presence: Seen | None,
    row: Mapping[str, Any] | None,
    now: datetime,
) -> Worker:
    told = of_answers(node, {question: said[-1] for question, said in answers.items()}, now)
    queues = frozenset(told.queues if told else row["queues"] if row else ())
    tasks = frozenset(told.tasks if told else row["tasks"] if row else ())
    if presence is not None:
        # It knows best: a queue that does not exist yet is none that it consumes.
        queues, tasks = frozenset(presence.queues), frozenset(presence.tasks)
    conf = _mapping(answers.get("conf"))
    beats = [beat for beat in heard.beats if beat.node == node]
    return Worker(
        node=node,
        ours=presence is not None,
        package=any(name.startswith("jobplane_") for name in conf),
        answered=told is not None,
        queues=queues,
        tasks=tasks,
        options=_options(answers.get("registered")),
        conf=conf,
        results=place(_results(answers.get("report")) or conf.get("result_backend")) if conf else None,
        pool=told.pool if told else presence.pool if presence else "",
        processes=_processes(answers, [beat.pid for beat in beats]),
        # The way here only ever makes a clock look late.
        ahead_s=max((beat.ahead_s for beat in beats), default=None),
    )


def place(url: object) -> Place | None:
    """Where a result backend's URL points to, whatever hides its password; None where nothing can be read."""
    if not isinstance(url, str) or not url:
        return Place("disabled")
    scheme = url.partition("://")[0].lower().rpartition("+")[2] if "://" in url else url.lower()
    if scheme not in _PORTS:
        return Place(scheme)
    try:
        parts = urlsplit(url)
        asked = parse_qs(parts.query).get("db", [""])[0]
        db = asked or parts.path.strip("/") or "0"
        return Place(scheme, f"{parts.hostname or 'localhost'}:{parts.port or _PORTS[scheme]}", int(db))
    except ValueError:
        return None


def _mapping(said: list[Any] | None) -> Mapping[str, Any]:
    last = said[-1] if said else None
    return last if isinstance(last, dict) and "error" not in last else {}


def _results(said: list[Any] | None) -> str | None:
    """What the environment sets for results stands in no configuration, but in the report."""
    text = _mapping(said).get("ok")
    match = _RESULTS.search(text) if isinstance(text, str) else None
    return match[1] if match else None


def _options(said: list[Any] | None) -> dict[str, dict[str, str]]:
    listed = said[-1] if said else None
    found = {}
    for line in listed if isinstance(listed, list) else ():
        if isinstance(line, str):
            name, _, options = line.partition(" [")
            found[name] = dict(_OPTION.findall(options.removesuffix("]")))
    return found


def _processes(answers: Mapping[str, list[Any]], pids: Iterable[int | None]) -> int:
    """How many processes speak under one name: by their ids, where two containers may have the same, and uptimes."""
    lives: list[tuple[int, int]] = []
    for stats in answers.get("stats", ()):
        pid, uptime = (stats.get("pid"), stats.get("uptime")) if isinstance(stats, dict) else (None, None)
        if type(pid) is not int or type(uptime) is not int:
            continue
        if not any(pid == known and abs(uptime - up) <= _SAME_UPTIME_S for known, up in lives):
            lives.append((pid, uptime))
    return max(len(lives), len({pid for pid in pids if pid is not None}), 1)
