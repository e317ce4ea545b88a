"""What a task logs and prints is in its attempt's stream: all of it, in order, and nothing of another run."""

import io
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from app.embedded import Valkey
from tests.processes import Process, wait_until
from tests.proxy import TcpProxy
from tests.workers.conftest import PlaneOn, StartWorker, shared_redis_url, worker_process
from tests.workers.plane import Plane
from workers.log_stream import AttemptLog, LogStream
from workers.logs import LINE_LIMIT, How, TaskLog, _call_handlers, _current, _Partial, _Stream, capture
from workers.masks import Masker
from workers.protocol import LOG_HEAD, LOG_TAIL, LOGS_KEY, TaskId, log_key

SETTINGS = {"include": "tests.workers.talking_tasks", "log_masks": "CARD-[0-9]{4,8}"}
POOLS = ("prefork", "threads", "solo")

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ")


@dataclass(frozen=True, slots=True)
class Said:
    """A stream, read whole."""

    entries: list[tuple[int, bytes]]
    ends: list[bool]

    @property
    def text(self) -> str:
        return b"".join(text for _, text in self.entries).decode()

    @property
    def lines(self) -> list[str]:
        """The lines without their time."""
        return [STAMP.sub("", line) for line in self.text.splitlines()]

    @property
    def whole(self) -> bool:
        """Whether nothing was cut or sent twice."""
        ends = [0, *(offset + len(text) for offset, text in self.entries)]
        return [offset for offset, _ in self.entries] == ends[:-1]


def said(plane: Plane, task_id: TaskId, attempt: int = 1) -> Said:
    with Redis.from_url(plane.url) as client:
        found: Any = client.xrange(log_key(task_id.run_id, attempt))
    return Said(
        [(int(fields[b"o"]), fields[b"t"]) for _, fields in found], [fields.get(b"e") == b"1" for _, fields in found]
    )


def ended(plane: Plane, task_id: TaskId) -> Said:
    """A stream, read whole once its end is there: for that a body's end waits, but not for more than a second."""
    wait_until(lambda: said(plane, task_id).ends[-1:] == [True], 30, "the end arrives")
    return said(plane, task_id)


@pytest.fixture(scope="module", params=POOLS)
def talking(
    request: pytest.FixtureRequest, valkey_server: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Process, Plane]]:
    """One worker of each pool."""
    url = shared_redis_url(valkey_server)
    path = tmp_path_factory.mktemp("talking") / "worker.log"
    options = ("-c", "1" if request.param == "solo" else "8")
    with (
        worker_process(path, url, url, *options, pool=request.param, settings=SETTINGS) as process,
        Plane(url, url) as plane,
    ):
        yield process, plane
        print(process.output()[-6000:])


def test_every_kind_of_line_once(talking: tuple[Process, Plane]) -> None:
    process, plane = talking
    task_id = plane.send("talk.all", queue="work")
    plane.wait_for(task_id, "SUCCESS")
    log = ended(plane, task_id)
    assert not any(log.ends[:-1])
    lines = log.lines
    trace = [line for line in lines if line.startswith(("Traceback", "  ", "KeyError"))]
    assert "KeyError: 'caught'" in trace
    told = [line for line in lines if line not in trace and "UserWarning" not in line]
    assert told == [
        "INFO talk.plain: plain 1",
        "ERROR talk.own: own",
        "INFO talk.task: task",
        "printed 1",
        "half and half",
        "shown",
        "to stderr",
        "WARNING talk.plain: two",
        "lines password=***",
        "ERROR talk.plain: with trace",
        "ERROR talk.own: by a handler to stderr",
        "INFO talk.plain: in a thread",
        "INFO talk.plain: in an executor",
        "INFO talk.plain: '%d' % ('not a number',)",
        "no end",
    ]
    assert sum("UserWarning: warned" in line for line in lines) == 1
    assert all(STAMP.match(line) for line in log.text.splitlines() if "INFO" in line or "printed" in line)
    assert plane.redis.zscore(LOGS_KEY, f"{task_id.run_id}:1") is not None
    assert plane.redis.ttl(log_key(task_id.run_id, 1)) > 24 * 3600
    # The worker's own output has it as well.
    for line in ("plain 1", "half ", "to stderr"):
        process.wait_for_line(line)


def test_the_traceback_of_a_body(talking: tuple[Process, Plane]) -> None:
    _, plane = talking
    task_id = plane.send("talk.fail", queue="work")
    plane.wait_for(task_id, "FAILURE")
    lines = ended(plane, task_id).lines
    assert lines[:2] == ["before", "ERROR talk.fail: Traceback (most recent call last):"]
    assert "talking_tasks.py" in lines[2]
    assert lines[-1] == "ValueError: token=***"


def test_a_retry_of_celery_goes_on_where_the_first_delivery_ended(
    talking: tuple[Process, Plane], tmp_path: Path
) -> None:
    _, plane = talking
    go = tmp_path / "go"
    task_id = plane.send("talk.retry", str(go), queue="work")
    assert ended(plane, task_id).lines[0] == "INFO talk.plain: delivery 0"
    go.touch()
    plane.wait_for(task_id, "SUCCESS")
    wait_until(lambda: sum(said(plane, task_id).ends) == 2, 30, "the second end arrives")
    log = said(plane, task_id)
    assert log.lines[0] == "INFO talk.plain: delivery 0"
    assert log.lines[1].startswith("WARNING talk.retry: Retry: ")
    assert log.lines[-1] == "INFO talk.plain: delivery 1"
    assert log.whole
    assert sum(log.ends) == 2


def test_binary_rubbish(talking: tuple[Process, Plane]) -> None:
    _, plane = talking
    task_id = plane.send("talk.rubbish", queue="work")
    plane.wait_for(task_id, "SUCCESS")
    log = ended(plane, task_id)
    assert log.lines[0] == r"nul\x00 bell\x07 \udc80 red é\x85"
    assert r"raw \xff" in log.lines
    assert r"INFO talk.plain: \ud800\ud800\ud800" in log.lines
    assert all(
        ord(character) >= 32 and ord(character) not in range(127, 160)
        for line in log.lines
        for character in line
        if character != "\t"
    )
    printed, logged = log.lines[-2:]
    assert printed == "x" * 16384 + f" [… {100_000 - 16384} bytes cut]"
    assert re.fullmatch(r"INFO talk.plain: ü+ \[… \d+ bytes cut\]", logged)


def test_eight_at_once(talking: tuple[Process, Plane]) -> None:
    """Each a thousand lines in about a second: the order holds, and nothing of another run."""
    process, plane = talking
    solo = "solo" in process.command
    count = 100 if solo else 1000
    for name in ("talk.many", "talk.coroutine"):
        sent = {
            f"w{number}": plane.send(name, f"w{number}", count, 0.01, queue="work")
            for number in range(2 if solo else 8)
        }
        for word, task_id in sent.items():
            plane.wait_for(task_id, "SUCCESS", 40)
            log = ended(plane, task_id)
            assert [line.removeprefix("INFO talk.plain: ") for line in log.lines] == [
                f"{word} {number}" for number in range(count)
            ]
            assert log.whole


def test_a_silent_task_writes_nothing(talking: tuple[Process, Plane]) -> None:
    _, plane = talking
    task_id = plane.send("talk.silent", queue="work")
    plane.wait_for(task_id, "SUCCESS")
    assert not plane.redis.exists(log_key(task_id.run_id, 1))
    assert plane.redis.zscore(LOGS_KEY, f"{task_id.run_id}:1") is None


def test_a_coarse_level_and_a_killed_worker(redis_url: str, start_worker: StartWorker, plane_on: PlaneOn) -> None:
    """Printed text has no level; what was said before the end is there."""
    settings = SETTINGS | {"log_level": "error"}
    worker, plane = start_worker(redis_url, redis_url, "-c", "1", settings=settings), plane_on(redis_url, redis_url)
    coarse = plane.send("talk.all", queue="work")
    plane.wait_for(coarse, "SUCCESS")
    lines = ended(plane, coarse).lines
    assert not any(line.startswith(("INFO", "WARNING")) for line in lines)
    assert "printed 1" in lines
    assert "ERROR talk.own: own" in lines

    killed = plane.send("talk.wait", 30.0, queue="work")
    wait_until(lambda: said(plane, killed).entries, 30, "the line arrives while the body runs")
    worker.kill()
    assert said(plane, killed).lines == ["waiting"]
    assert said(plane, killed).ends == [False]


@pytest.mark.long
def test_logs_may_be_off(redis_url: str, start_worker: StartWorker, plane_on: PlaneOn) -> None:
    plane = plane_on(redis_url, redis_url)
    start_worker(redis_url, redis_url, "-c", "1", settings=SETTINGS | {"logs": "false"})
    task_id = plane.send("talk.all", queue="work")
    plane.wait_for(task_id, "SUCCESS")
    assert not plane.redis.exists(log_key(task_id.run_id, 1), LOGS_KEY)


@pytest.mark.parametrize("how", ["cut", pytest.param("frozen", marks=pytest.mark.long)])
def test_redis_away_during_a_body(
    how: str, amqp_url: str, redis_url: str, tmp_path: Path, start_worker: StartWorker, plane_on: PlaneOn
) -> None:
    """Nothing is missing and nothing there twice, also if an answer was lost."""
    plane = plane_on(amqp_url, redis_url)
    plane.declare("work")
    parts = urlsplit(redis_url)
    with TcpProxy("127.0.0.1", parts.port or 0) as proxy:
        far = redis_url.replace(f":{parts.port}", f":{proxy.port}")
        worker = start_worker(amqp_url, far, "-c", "1", settings=SETTINGS)
        gone = tmp_path / "gone"
        task_id = plane.send("talk.many", "w", 400, 0.02, str(gone), queue="work")
        wait_until(lambda: len(said(plane, task_id).lines) > 50, 30, "lines arrive")
        if how == "cut":
            proxy.cut()
        else:
            proxy.freeze()
        gone.touch()
        worker.wait_for_line("redis_away")
        worker.wait_for_line("logs_not_sent")
        if how == "cut":
            proxy.restore()
        else:
            proxy.thaw()
        plane.wait_for(task_id, "SUCCESS", 40)
        log = ended(plane, task_id)
    assert [line.removeprefix("INFO talk.plain: ") for line in log.lines] == [f"w {number}" for number in range(400)]
    assert log.whole


@pytest.mark.long
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_hundred_megabytes(pool: str, redis_url: str, start_worker: StartWorker, plane_on: PlaneOn) -> None:
    start_worker(redis_url, redis_url, "-c", "1", pool=pool, settings=SETTINGS)
    plane = plane_on(redis_url, redis_url)
    lines, size = 100_000, 1000
    task_id = plane.send("talk.flood", lines, size, queue="work")
    grown_kib = plane.wait_for(task_id, "SUCCESS", 120)["result"]
    log = ended(plane, task_id)
    assert grown_kib < 32 * 1024
    numbers = [int(line.split()[0]) for line in log.lines]
    head = [number for place, number in enumerate(numbers) if place == number]
    assert len(head) * (size + 30) >= LOG_HEAD
    assert numbers == sorted(numbers)
    assert numbers[-1] == lines - 1
    tail = sum(len(text) for offset, text in log.entries if offset >= LOG_HEAD)
    assert LOG_TAIL <= tail <= 2 * LOG_TAIL + 2 * size
    assert log.ends[-1]
    offset, text = log.entries[-1]
    assert offset + len(text) == sum(len(f"{number} ") + size + 26 for number in range(lines))


# The stream without a worker.


def line(number: int) -> bytes:
    return b"%099d\n" % number


def attempt_log(stream: LogStream, run: str = "r") -> AttemptLog:
    return AttemptLog(stream, log_key(run, 1), f"{run}:1")


def read(redis: Redis, run: str = "r") -> list[tuple[int, bytes, bool]]:
    found: Any = redis.xrange(log_key(run, 1))
    return [(int(fields[b"o"]), fields[b"t"], fields.get(b"e") == b"1") for _, fields in found]


def drain(stream: LogStream) -> None:
    while stream.run_once():
        pass


class Idle(LogStream):
    """A stream that has no thread: the test makes the rounds."""

    def note(self, attempt: AttemptLog, *, hurry: bool) -> None:
        self._logs[attempt] = None


def test_memory_is_bounded_while_redis_is_away(redis_url: str) -> None:
    """The head and the tail wait; the rest is a jump."""
    stream, parts = Idle(redis_url), urlsplit(redis_url)
    dead = Idle(redis_url.replace(f":{parts.port}", ":1"))
    log = attempt_log(dead)
    for number in range(100_000):
        log.append(line(number))
        if number % 20_000 == 0:
            with pytest.raises(RedisConnectionError):
                dead.run_once()
    held = len(log._head) + sum(len(text) for _, text in log._tail) + sum(len(entry.text) for entry in log.flight)
    assert held <= LOG_HEAD + 2 * LOG_TAIL
    log._stream = stream
    assert log.close()
    drain(stream)
    with Redis.from_url(redis_url) as redis:
        entries = read(redis)
    text = b"".join(text for _, text, _ in entries)
    assert text.startswith(b"".join(line(number) for number in range(LOG_HEAD // 100 + 1)))
    assert text.endswith(b"".join(line(number) for number in range(100_000 - LOG_TAIL // 100, 100_000)))
    assert entries[-1][0] + len(entries[-1][1]) == 100_000 * 100
    assert entries[-1][2]
    assert log.done.is_set()


def test_a_later_delivery_beyond_the_head(redis_url: str) -> None:
    """Deliveries share the head and the tail: entries of an earlier one beyond the head are deleted as they age."""
    with Redis.from_url(redis_url) as redis:
        for delivery in range(4):
            stream = Idle(redis_url)
            log = attempt_log(stream)
            for number in range(8_000):
                log.append(line(delivery * 8_000 + number))
                if number % 100 == 0:
                    stream.run_once()
            log.close()
            drain(stream)
        entries = read(redis)
    assert sum(len(text) for _, text, _ in entries) <= LOG_HEAD + 2 * LOG_TAIL + 200
    assert entries[-1][0] + len(entries[-1][1]) == 32_000 * 100
    for offset, text, _ in entries:
        assert offset % 100 == 0
        assert not text or text.startswith(line(offset // 100))


def test_a_full_redis_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    valkey = Valkey(tmp_path / "valkey")
    valkey.start()
    try:
        stream = Idle(valkey.url)
        log = attempt_log(stream)
        with Redis.from_url(valkey.url) as redis:
            log.append(line(0))
            drain(stream)
            redis.config_set("maxmemory-policy", "noeviction")
            redis.config_set("maxmemory", 1)
            log.append(line(1))
            drain(stream)
            redis.config_set("maxmemory", 0)
            log.append(line(2))
            log.close()
            drain(stream)
            assert read(redis) == [(0, line(0), False), (200, line(2), True)]
        assert log.done.is_set()
    finally:
        valkey.stop()


def test_the_end_of_a_body_waits_for_its_log(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever hears of the end finds the whole log, unless Redis is slow."""
    stream = LogStream(redis_url)
    run_once = stream.run_once

    def slow() -> bool:
        time.sleep(0.3)
        return run_once()

    monkeypatch.setattr(stream, "run_once", slow)
    monkeypatch.setattr("workers.logs.stream", lambda _: stream)
    monkeypatch.setattr("workers.logs.END_S", 30)
    body = capture(How(redis_url, logging.INFO, ()), "r", 1, "task")
    body._log.say("then", "", "the last word")
    body.__exit__(None, None, None)
    with Redis.from_url(redis_url) as redis:
        assert read(redis) == [(0, b"then the last word\n", True)]


def pieces(*said: str) -> list[str]:
    """The lines, without their time, that these pieces make when they are printed."""
    out = attempt_log(Idle("redis://localhost:1"))
    told = TaskLog(out, 20, Masker())
    for piece in said:
        told.printed(1, piece)
    told.end()
    return [line[25:] for line in out._head.decode().split("\n")[:-1]]


@pytest.mark.parametrize(
    ("said", "lines"),
    [
        (("a", " ", "b", "\n"), ["a b"]),
        (("a\nb\n\nc",), ["a", "b", "", "c"]),
        (("a\r\n", "b"), ["a", "b"]),
        (("10%\r", "20%\r", "100%", "\n"), ["100%"]),
        (("\r10%", "\r20%", "\r100%"), ["100%"]),
        (("pass", "word=a", "b\n"), ["password=***"]),
        (("x" * 10,) * 2000, ["x" * LINE_LIMIT + f" [… {20_000 - LINE_LIMIT} bytes cut]"]),
        (("é" * 50_000, "!\n"), ["é" * (LINE_LIMIT // 2) + f" [… {100_001 - LINE_LIMIT} bytes cut]"]),
    ],
)
def test_printed_pieces_become_lines(said: tuple[str, ...], lines: list[str]) -> None:
    assert pieces(*said) == lines


def test_what_never_ends_its_line_takes_no_more_memory() -> None:
    line = _Partial()
    for _ in range(100_000):
        line.add(".")
    assert len(line.pieces) == line.size == 100_000 - line.cut
    assert line.size < 2 * LINE_LIMIT


class Late:
    """As if the soft time limit came while this is written."""

    def __str__(self) -> str:
        raise SoftTimeLimitExceeded


def test_a_soft_time_limit_goes_through_to_the_body() -> None:
    token = _current.set(TaskLog(attempt_log(Idle("redis://localhost:1")), 20, Masker()))
    try:
        record = logging.LogRecord("shop", logging.INFO, __file__, 1, "%s", (Late(),), None)
        with pytest.raises(SoftTimeLimitExceeded):
            _call_handlers(lambda *_: None)(logging.getLogger("shop"), record)
        with pytest.raises(SoftTimeLimitExceeded):
            _Stream(io.StringIO()).write(Late())
    finally:
        _current.reset(token)
