"""The lease itself, in this process and on a real Valkey."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from celery.exceptions import Ignore, Reject
from redis import Redis
from redis.exceptions import RedisError

from app.embedded import Valkey
from tests.processes import wait_until
from tests.proxy import TcpProxy
from workers.keeper import STOPPED, UNRENEWED, Keeper, give_back_all
from workers.lease import Attempt, Cancelled, LeaseLost
from workers.protocol import CANCELLED, DONE, REAPED


@pytest.fixture
def keeper(redis_url: str) -> Iterator[Keeper]:
    made = Keeper(redis_url)
    yield made
    # Its thread goes on, and must not renew in a database that is another test's by then.
    for attempt in list(made._attempts):
        made.drop(attempt)
    made.redis.close()


def taken(keeper: Keeper, name: str = "one") -> Attempt:
    attempt = Attempt(keeper, f"celery-task-meta-{name}", 60, f"lease:{name}")
    keeper.take(attempt, '{"status": "STARTED"}')
    return attempt


def test_lease_goes_to_one_of_many(keeper: Keeper) -> None:
    attempts = [Attempt(keeper, "celery-task-meta-one", 60, "lease:one") for _ in range(20)]
    threads = [threading.Thread(target=keeper.take, args=(attempt, "{}")) for attempt in attempts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    holders = [attempt for attempt in attempts if attempt.lost is None]
    assert len(holders) == 1
    assert keeper.redis.get("lease:one") == holders[0].held
    assert {attempt.lost for attempt in attempts} == {None, holders[0].held}


def test_take_may_be_repeated_after_a_lost_answer(keeper: Keeper) -> None:
    attempt = taken(keeper)
    keeper.take(attempt, "{}")
    assert attempt.lost is None


def test_heartbeat_renews_and_takes_again_what_redis_lost(keeper: Keeper) -> None:
    attempt = taken(keeper)
    keeper.redis.pexpire("lease:one", 500)
    keeper.run_once()
    assert keeper.redis.pttl("lease:one") > 25_000
    keeper.redis.flushdb()
    keeper.run_once()
    assert keeper.redis.get("lease:one") == attempt.held
    assert attempt.lost is None


@pytest.mark.parametrize(("value", "kind"), [(REAPED, LeaseLost), (CANCELLED, Cancelled), ("held:other", LeaseLost)])
def test_foreign_value_silences_the_attempt(keeper: Keeper, value: str, kind: type[BaseException]) -> None:
    attempt = taken(keeper)
    keeper.redis.set("lease:one", value)
    with pytest.raises(kind):
        attempt.tell(lambda: '{"status": "PROGRESS"}', at_once=True)
    with pytest.raises(kind):
        attempt.insist(lambda: '{"status": "MERGING"}')
    assert keeper.redis.get("celery-task-meta-one") == '{"status": "STARTED"}'
    with pytest.raises(Ignore):
        attempt.execute(lambda: "a result")
    attempt.end(finished=True)
    assert keeper.redis.get("lease:one") == value


def test_end_is_done_and_hand_back_is_nothing(keeper: Keeper) -> None:
    taken(keeper, "done").end(finished=True)
    taken(keeper, "back").end(finished=False)
    keeper.run_once()
    assert keeper.redis.get("lease:done") == DONE
    assert keeper.redis.pttl("lease:done") > 23 * 3600 * 1000
    assert keeper.redis.get("lease:back") is None


def test_nothing_begins_once_all_was_given_back(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.keeper._given_back", threading.Event())
    give_back_all()
    attempt = taken(keeper)
    assert attempt.lost == STOPPED
    assert isinstance(attempt.refusal(), Reject)
    attempt.end(finished=False)
    assert keeper.redis.keys() == []


@pytest.mark.parametrize("status", ["SUCCESS", "FAILURE", "REVOKED"])
def test_end_is_never_covered(keeper: Keeper, status: str) -> None:
    attempt = taken(keeper)
    keeper.redis.set("celery-task-meta-one", f'{{"status": "{status}"}}')
    with pytest.raises(LeaseLost):
        attempt.tell(lambda: '{"status": "PROGRESS"}', at_once=True)
    assert status in str(keeper.redis.get("celery-task-meta-one"))


@pytest.mark.parametrize("old", ["", "[]", "not json", '"text"', "[" * 2000])
def test_what_stands_there_need_not_be_a_report(keeper: Keeper, old: str) -> None:
    keeper.redis.set("celery-task-meta-one", old)
    assert taken(keeper).lost is None


def far_keeper(redis_url: str, proxy: TcpProxy, fence_s: float | None) -> Keeper:
    """One that reaches Redis through the proxy."""
    parts = urlsplit(redis_url)
    return Keeper(parts._replace(netloc=parts.netloc.replace(str(parts.port), str(proxy.port))).geturl(), fence_s)


def test_what_cannot_be_renewed_is_ended_and_comes_again(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.keeper.HEARTBEAT_S", 0.2)
    with TcpProxy("127.0.0.1", urlsplit(redis_url).port or 0) as proxy:
        keeper = far_keeper(redis_url, proxy, 0.5)
        attempt = taken(keeper)
        proxy.cut()
        with pytest.raises(Reject) as rejected:
            attempt.execute(lambda: time.sleep(60))
        assert rejected.value.requeue
        with pytest.raises(LeaseLost):
            attempt.check()
        proxy.restore()
        heir = Attempt(keeper, "celery-task-meta-one", 60, "lease:one")
        keeper.redis.delete("lease:one")  # what time does
        keeper.take(heir, '{"status": "STARTED"}')
        attempt.end(finished=False)
        assert keeper.redis.get("lease:one") == heir.held
        heir.end(finished=True)
        keeper.redis.close()


@pytest.mark.parametrize("fence_s", [None, 60])
def test_a_body_outlives_an_outage_that_is_no_longer_than_it_may_be(redis_url: str, fence_s: float | None) -> None:
    with TcpProxy("127.0.0.1", urlsplit(redis_url).port or 0) as proxy:
        keeper = far_keeper(redis_url, proxy, fence_s)
        attempt = taken(keeper)

        def body() -> str:
            proxy.cut()
            attempt.tell(lambda: '{"status": "PROGRESS"}', at_once=True)
            for _ in range(3):
                with pytest.raises(RedisError):
                    keeper.run_once()
                keeper.fence()
            proxy.restore()
            return "whole"

        assert attempt.execute(body) == "whole"
        attempt.end(finished=True)
        assert keeper.redis.get("lease:one") == DONE
        keeper.redis.close()


def test_interrupt_never_escapes_the_body(keeper: Keeper) -> None:
    """Bodies that end just when they are interrupted, in the main thread (by signal) and in another."""

    def bodies(name: str) -> None:
        for n in range(150):
            attempt = taken(keeper, f"{name}{n}")
            length_s = random.random() * 0.002

            def body(length_s: float = length_s) -> None:
                end = time.monotonic() + length_s
                while time.monotonic() < end:
                    pass

            lose = threading.Timer(random.random() * 0.002, _lose, [attempt])
            lose.start()
            try:
                attempt.execute(body)
            except Ignore:
                assert attempt.lost == REAPED
            lose.join()
            attempt.end(finished=True)

    failures: list[BaseException] = []

    def elsewhere() -> None:
        try:
            bodies("thread")
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    try:
        bodies("main")
    finally:
        thread.join(60)
        signal.signal(signal.SIGURG, signal.SIG_DFL)
    assert failures == []


def _lose(attempt: Attempt) -> None:
    attempt.lose(REAPED)
    for _ in range(3):
        attempt.interrupt()


def test_news_waits_while_redis_is_away_and_the_newest_comes_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen, so that each command runs into its time-out: the body pays for one of them."""
    monkeypatch.setattr("workers.keeper._COMMAND_S", 0.5)
    tried_by: list[int] = []
    valkey = Valkey(tmp_path / "valkey")
    valkey.start()
    try:
        keeper = Keeper(valkey.url)
        attempt = taken(keeper)
        assert valkey.pid is not None
        os.kill(valkey.pid, signal.SIGSTOP)
        say = keeper.say
        monkeypatch.setattr(
            keeper, "say", lambda attempt, report: tried_by.append(threading.get_ident()) or say(attempt, report)
        )
        for n in range(1000):
            attempt.tell(lambda n=n: f'{{"status": "PROGRESS", "n": {n}}}', at_once=True)
        assert tried_by.count(threading.get_ident()) == 1
        os.kill(valkey.pid, signal.SIGCONT)
        with Redis.from_url(valkey.url, decode_responses=True) as client:
            wait_until(lambda: '"n": 999' in str(client.get("celery-task-meta-one")), 30, "the newest was said")
        attempt.end(finished=True)
        keeper.redis.close()
    finally:
        valkey.stop()


def test_the_first_and_the_newest_of_a_coroutine_are_said(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it tells both before the heartbeat thread has turned, which says them for it."""
    said: list[str] = []
    say = keeper.say
    attempt = taken(keeper)
    monkeypatch.setattr(keeper, "wake", lambda: None)
    monkeypatch.setattr(keeper, "say", lambda attempt, report: said.append(report) or say(attempt, report))

    def body() -> None:
        with attempt.elsewhere(lambda: None):
            for n in range(4):
                attempt.tell(lambda n=n: f'{{"status": "PROGRESS", "n": {n}}}')

    attempt.execute(body)
    attempt.end(finished=True)
    assert (said[0], said[-1]) == ('{"status": "PROGRESS", "n": 0}', '{"status": "PROGRESS", "n": 3}')


def test_no_news_holds_up_the_end_of_what_cannot_be_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many bodies of one process have news, and each try runs into its time-out."""
    monkeypatch.setattr("workers.keeper.HEARTBEAT_S", 0.2)
    monkeypatch.setattr("workers.keeper._COMMAND_S", 0.5)
    monkeypatch.setattr("workers.lease.NEWS_S", 1.0)
    valkey = Valkey(tmp_path / "valkey")
    valkey.start()
    try:
        keeper = Keeper(valkey.url, fence_s=1.0)
        attempts = [taken(keeper, str(n)) for n in range(100)]
        for attempt in attempts * 2:
            attempt.tell(lambda: '{"status": "PROGRESS"}')
        assert valkey.pid is not None
        os.kill(valkey.pid, signal.SIGSTOP)
        # A time-out for each would be 50 s.
        wait_until(lambda: all(attempt.lost == UNRENEWED for attempt in attempts), 20, "all are given up")
        os.kill(valkey.pid, signal.SIGCONT)
        for attempt in attempts:
            attempt.end(finished=False)
        keeper.redis.close()
    finally:
        valkey.stop()
