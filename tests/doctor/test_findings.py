"""What the doctor says of given facts."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.catalogue.ask import Beat, Heard
from app.doctor.answers import place, workers
from app.doctor.examine import examine
from app.doctor.facts import Facts, Need, Place, Queue, RedisServer, Scheduler, Store, Worker
from app.doctor.finding import BLIND, CODES, FOUND, SOUND, Finding, in_order, status
from app.doctor.findings.options import seconds
from app.doctor.findings.words import listed, span

NOW = datetime(2026, 11, 22, tzinfo=UTC)
GOOD_CONF: dict[str, Any] = {
    "task_acks_late": True,
    "task_reject_on_worker_lost": None,
    "task_track_started": True,
    "result_extended": True,
    "result_expires": "1 day, 0:00:00",
    "result_serializer": "json",
    "result_backend_always_retry": True,
    "worker_prefetch_multiplier": 1,
    "broker_transport_options": {"visibility_timeout": 43200},
}
STOCK = Worker(
    "svc@h",
    answered=True,
    queues=frozenset({"q"}),
    tasks=frozenset({"svc.add", "svc.mul"}),
    conf=GOOD_CONF,
    results=Place("redis", "r:6379", 0, same=True),
    pool="prefork",
    ahead_s=-0.1,
)
OURS = replace(STOCK, node="mine@h", ours=True, package=True)
REDIS_INFO = {"maxmemory_policy": "noeviction", "maxmemory": 0, "aof_enabled": 1, "role": "master"}
SERVER = RedisServer("r:6379", frozenset({"results", "broker"}), REDIS_INFO)
LOOPS = frozenset({"tick", "dispatch"})
STORE = Store("0003", "0003", frozenset({"0001", "0002", "0003"}), schedulers=(Scheduler("a:1", LOOPS),), processes=2)
SOUND_FACTS = Facts(
    on_rabbitmq=False,
    store=STORE,
    queues={"q": Queue("q")},
    needs=(Need("q", "svc.add", jobs=1, time_limit_s=600, unlimited=False),),
    redis=(SERVER,),
    workers=(STOCK,),
    clocks={"the database": 0.5, "Redis": 0.4},
    redis_where="r:6379",
)
ON_RABBITMQ = replace(SOUND_FACTS, on_rabbitmq=True, queues={"q": Queue("q", consumers=1)})


def conf(**changes: Any) -> Facts:
    return replace(SOUND_FACTS, workers=(replace(STOCK, conf={**GOOD_CONF, **changes}),))


def worker(base: Facts = SOUND_FACTS, **changes: Any) -> Facts:
    return replace(base, workers=(replace(STOCK, **changes),))


def info(uses: str = "results broker", save: str | None = None, **changes: Any) -> Facts:
    server = replace(SERVER, uses=frozenset(uses.split()), info={**REDIS_INFO, **changes}, save=save)
    return replace(SOUND_FACTS, redis=(server,))


def store(**changes: Any) -> Facts:
    return replace(SOUND_FACTS, store=replace(STORE, **changes))


def need(base: Facts = SOUND_FACTS, queue: dict[str, Any] | None = None, **changes: Any) -> Facts:
    return replace(
        base,
        needs=(replace(base.needs[0], **changes),),
        queues={"q": replace(base.queues["q"], **(queue or {}))},
    )


TABLE: dict[str, tuple[Facts, set[tuple[str, str]]]] = {
    "sound": (SOUND_FACTS, set()),
    "sound on RabbitMQ": (ON_RABBITMQ, set()),
    "sound, answered by rpc": (worker(ON_RABBITMQ, results=Place("rpc")), set()),
    "ours": (replace(SOUND_FACTS, workers=(replace(OURS, conf={**GOOD_CONF, "task_track_started": False}),)), set()),
    "away": (
        replace(SOUND_FACTS, away={"database": "refused", "redis": "refused", "broker": "refused"}),
        {("database_away", "error"), ("redis_away", "error"), ("broker_away", "error")},
    ),
    "no database": (
        replace(conf(result_extended=False), store=None, queues={}, needs=(), away={"database": "refused"}),
        {("database_away", "error"), ("result_extended_off", "warning")},
    ),
    "not asked": (replace(SOUND_FACTS, away={"workers": "no answer"}), {("workers_not_asked", "error")}),
    "old schema": (store(revision="0002"), {("migrations", "error")}),
    "new schema": (store(revision="0009"), {("migrations", "note")}),
    "no schema": (store(revision=None), {("migrations", "error")}),
    "no scheduler": (store(schedulers=()), {("no_scheduler", "error")}),
    "two releases": (
        store(schedulers=(Scheduler("a:1", LOOPS), Scheduler("b:1", LOOPS | {"seal"}))),
        {("schedulers_differ", "warning")},
    ),
    "a loop that fails": (
        store(schedulers=(Scheduler("a:1", LOOPS, {"tick": "OSError: no"}),)),
        {("loop_in_trouble", "warning")},
    ),
    "few connections": (store(connections_limit=15), {("connections_short", "warning")}),
    "connections of others": (store(connections=95, connections_ours=5), {("connections_short", "warning")}),
    "a parked job": (store(parked=2, parked_example="j: no"), {("job_parked", "error")}),
    "Redis' clock": (replace(SOUND_FACTS, clocks={"the database": 0.0, "Redis": -4.0}), {("clocks_differ", "warning")}),
    "this clock": (replace(SOUND_FACTS, clocks={"the database": 9.0, "Redis": 9.0}, workers=()), {
        ("clocks_differ", "warning"), ("queue_not_consumed", "error")
    }),
    "a worker's clock": (worker(ahead_s=-70.0), {("clocks_differ", "warning")}),
    "log store": (replace(SOUND_FACTS, log_store="file:///x", log_store_problem="no"), {("log_store", "error")}),
    "evicts, bounded": (info(maxmemory_policy="allkeys-lru", maxmemory=10**9), {("redis_evicts", "error")}),
    "evicts, unbounded": (info(maxmemory_policy="volatile-lru"), {("redis_evicts", "note")}),
    "nothing on disk": (info(aof_enabled=0, save=""), {("redis_not_kept", "error")}),
    "results not on disk": (info("results", aof_enabled=0, save=""), {("redis_not_kept", "warning")}),
    "snapshots": (info(aof_enabled=0, save="3600 1"), {("redis_not_kept", "warning")}),
    "snapshots of results": (info("results", aof_enabled=0, save="3600 1"), set()),
    "a full disk": (info(aof_last_write_status="err"), {("redis_not_kept", "error")}),
    "memory": (info(maxmemory=100, used_memory=90), {("redis_memory", "warning")}),
    "no memory": (info(maxmemory=100, used_memory=99), {("redis_memory", "error")}),
    "a replica": (info(role="slave"), {("redis_replica", "error")}),
    "old Redis": (info(redis_version="5.0.7"), {("redis_old", "error")}),
    "twins": (worker(processes=2), {("node_twice", "error")}),
    "a silent worker": (
        replace(SOUND_FACTS, workers=(STOCK, Worker("mute@h", ahead_s=0.0))),
        {("worker_silent", "warning")},
    ),
    "ours on another Redis": (worker(package=True), {("worker_elsewhere", "error")}),
    "a queue in trouble": (need(queue={"problem": "406"}), {("queue_in_trouble", "error")}),
    "nobody consumes": (replace(SOUND_FACTS, workers=()), {("queue_not_consumed", "error")}),
    "nobody consumes, on RabbitMQ": (need(ON_RABBITMQ, queue={"consumers": 0}), {("queue_not_consumed", "error")}),
    "not known who consumes": (need(ON_RABBITMQ, queue={"consumers": None}), set()),
    "nobody asked": (
        replace(SOUND_FACTS, workers=(), away={"workers": "no answer"}),
        {("workers_not_asked", "error")},
    ),
    "strangers": (need(ON_RABBITMQ, queue={"consumers": 2}), {("consumer_unknown", "note")}),
    "not registered": (need(task="svc.no"), {("task_not_registered", "error")}),
    "Celery's own": (need(task="celery.backend_cleanup"), set()),
    "a thief": (
        replace(SOUND_FACTS, workers=(STOCK, replace(STOCK, node="thief@h", tasks=frozenset({"other.x"})))),
        {("thief_waiting", "error")},
    ),
    "a thief that may be gone": (
        replace(
            SOUND_FACTS,
            workers=(STOCK, Worker("gone@h", queues=frozenset({"q"}), tasks=frozenset({"other.x"}))),
        ),
        set(),
    ),
    "visibility by limit": (need(time_limit_s=43200), {("visibility_short", "error"), }),
    "visibility by what was seen": (need(queue={"longest_s": 50000.0, "seen": 9}), {("visibility_short", "error")}),
    "visibility by default": (
        replace(conf(broker_transport_options={}), needs=(Need("q", "svc.add", jobs=1),)),
        {("visibility_short", "warning")},
    ),
    "a limit of the worker": (
        replace(
            conf(broker_transport_options={}, task_time_limit=600), needs=(Need("q", "svc.add", jobs=1),)
        ),
        set(),
    ),
    "visibility of ours": (
        replace(SOUND_FACTS, workers=(OURS,), needs=(replace(SOUND_FACTS.needs[0], time_limit_s=50000),)),
        {("visibility_short", "warning")},
    ),
    "consumer timeout": (
        need(ON_RABBITMQ, queue={"consumer_timeout_s": 600}),
        {("consumer_timeout_short", "error")},
    ),
    "RabbitMQ's own consumer timeout": (need(ON_RABBITMQ, time_limit_s=1800), {("consumer_timeout_short", "warning")}),
    "consumer timeout by what was seen": (
        need(ON_RABBITMQ, queue={"longest_s": 1700.0, "seen": 9}),
        {("consumer_timeout_short", "warning")},
    ),
    "prefetch by limit": (conf(worker_prefetch_multiplier=4), {("prefetch_long", "warning")}),
    "prefetch without end": (conf(worker_prefetch_multiplier=0), {("prefetch_long", "warning")}),
    "prefetch of short tasks": (
        replace(conf(worker_prefetch_multiplier=4), queues={"q": Queue("q", longest_s=2.0, seen=50)}),
        set(),
    ),
    "early": (conf(task_acks_late=False), {("acks_early", "warning")}),
    "early but for its tasks": (
        replace(
            worker(conf={**GOOD_CONF, "task_acks_late": False}, options={"svc.add": {"acks_late": "True"}}),
        ),
        set(),
    ),
    "a loop of the lost": (conf(task_reject_on_worker_lost=True), {("rejects_lost", "error")}),
    "threads": (worker(pool="threads"), {("limit_not_kept", "warning")}),
    "started": (conf(task_track_started=False), {("track_started_off", "warning")}),
    "one task's word": (
        worker(options={"svc.add": {"track_started": "False"}, "svc.mul": {"track_started": "True"}}),
        {("track_started_off", "warning")},
    ),
    "no results": (worker(results=Place("disabled")), {("results_unreadable", "error")}),
    "results in a file": (worker(results=Place("sqlite")), {("results_unreadable", "error")}),
    "rpc on Redis": (worker(results=Place("rpc")), {("results_unreadable", "error")}),
    "another database": (worker(results=Place("redis", "r:6379", 1, same=True)), {("results_elsewhere", "error")}),
    "another server": (worker(results=Place("redis", "x:6379", 0, same=False)), {("results_elsewhere", "error")}),
    "an unknown server": (worker(results=Place("redis", "x:6379", 0)), {("results_elsewhere", "warning")}),
    "a prefix": (
        conf(result_backend_transport_options={"global_keyprefix": "********"}),
        {("results_elsewhere", "error")},
    ),
    "a prefix that is known": (
        replace(
            conf(result_backend_transport_options={"global_keyprefix": "********"}),
            queues={"q": Queue("q", result_prefix="svc:")},
        ),
        set(),
    ),
    "results that expire": (conf(result_expires=1800), {("results_expire", "warning")}),
    "results that expire at once": (conf(result_expires="0:00:10"), {("results_expire", "error")}),
    "results for ever": (conf(result_expires=0), set()),
    "pickle": (conf(result_serializer="pickle"), {("results_not_json", "error")}),
    "extended": (conf(result_extended=False), {("result_extended_off", "warning")}),
    "not retried": (conf(result_backend_always_retry=False), {("results_not_retried", "note")}),
    "somebody else's": (
        replace(
            SOUND_FACTS,
            workers=(STOCK, replace(STOCK, node="x@h", queues=frozenset({"theirs"}), conf={"task_acks_late": False})),
        ),
        set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_what_is_said(name: str) -> None:
    facts, wanted = TABLE[name]
    found = examine(facts)
    assert {(one.code, one.level) for one in found} == wanted, found
    for one in found:
        assert one.says.endswith("."), one
        assert one.do.endswith("."), one
        assert "None" not in one.says.replace("None lives", "").replace("None of its workers", ""), one


def test_every_code_has_a_case() -> None:
    assert {code for _, wanted in TABLE.values() for code, _ in wanted} == set(CODES)


def test_every_code_stands_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    section = text.partition("\n## Doctor\n")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \| (?:error|warning|note)", section, re.MULTILINE)) == CODES


def test_the_status_and_the_order() -> None:
    note, warning, error = (
        Finding(code, level, "s", "says.", "do.")  # type: ignore[arg-type]
        for code, level in (("redis_evicts", "note"), ("acks_early", "warning"), ("log_store", "error"))
    )
    blind = Finding("database_away", "error", "s", "says.", "do.")
    assert (status([]), status([note]), status([note, warning]), status([error])) == (SOUND, SOUND, FOUND, FOUND)
    assert status([warning, blind]) == BLIND
    assert in_order([note, warning, error, blind]) == [blind, error, warning, note]


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        (None, Place("disabled")),
        ("disabled", Place("disabled")),
        ("rpc://", Place("rpc")),
        ("redis://:**@cache/2", Place("redis", "cache:6379", 2)),
        ("redis://cache:7000", Place("redis", "cache:7000", 0)),
        ("rediss://u:**@cache:7000/0?db=5", Place("rediss", "cache:7000", 5)),
        ("db+postgresql://u:**@h/x", Place("postgresql")),
        ("redis://cache:port/0", None),
    ],
)
def test_where_results_are(url: str | None, wanted: Place | None) -> None:
    assert place(url) == wanted


@pytest.mark.parametrize(
    ("told", "wanted"),
    [(10, 10), ("1 day, 0:00:00", 86400), ("2 days, 1:00:05", 176405), ("0:00:10", 10), (None, None), ("soon", None)],
)
def test_a_duration_as_workers_tell_it(told: Any, wanted: float | None) -> None:
    assert seconds(told) == wanted


def test_what_strangers_say() -> None:
    """Two under one name, a report that knows better than the configuration, and words of the wrong kind."""
    good = {"queues": [{"name": "q"}], "tasks": ["svc.add [acks_late=True time_limit=60]"]}
    heard = Heard(
        [
            ("active_queues", "a@h", good["queues"]),
            ("registered", "a@h", good["tasks"]),
            ("stats", "a@h", {"pid": 1, "uptime": 5, "pool": {"implementation": "celery.concurrency.solo:TaskPool"}}),
            ("stats", "a@h", {"pid": 1, "uptime": 500, "pool": {"implementation": "celery.concurrency.solo:TaskPool"}}),
            ("conf", "a@h", {"result_backend": None, "task_acks_late": False}),
            ("report", "a@h", {"ok": "settings -> transport:redis results:redis://:**@r/3\n"}),
            ("conf", "odd@h", ["no", {"configuration": 1}]),
            ("registered", "odd@h", 7),
        ],
        [Beat("a@h", 1, -0.5), Beat("a@h", 1, -0.1), Beat("odd@h", None, 3.0)],
    )
    a, odd, seen = workers(heard, {}, {"seen@h": {"queues": ["q"], "tasks": ["t"]}}, NOW)
    assert (a.node, a.answered, a.processes, a.ahead_s, a.pool) == ("a@h", True, 2, -0.1, "solo")
    assert a.options == {"svc.add": {"acks_late": "True", "time_limit": "60"}}
    assert (a.queues, a.tasks) == ({"q"}, {"svc.add"})
    assert a.results == Place("redis", "r:6379", 3)
    assert (odd.answered, odd.conf, odd.ahead_s) == (False, {}, 3.0)
    assert (seen.node, seen.answered, seen.queues) == ("seen@h", False, {"q"})


def test_words() -> None:
    assert [span(value) for value in (10, 90, 600, 3600, 7200, 43200, 172800)] == [
        "10 s", "90 s", "10 min", "1 h", "2 h", "12 h", "2 days",
    ]  # fmt: skip
    assert listed("gfedcba") == "a, b, c, d, e and 2 more"
