"""What the signal that ends a child of a pool meets, in this process in the place of a child."""

import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.processes import wait_until
from workers import interrupts
from workers.interrupts import hold, release


class Work:
    """A body that is at work, or over."""

    def __init__(self, *, over: bool) -> None:
        self.over = over
        self.ends_by: SystemExit | None = None

    def stop_here(self) -> None:
        raise NotImplementedError


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What the pool's own handler has heard, which it answers with SystemExit, while the worker is being stopped."""
    signals: list[int] = []

    def handle(signum: int, _frame: Any) -> None:
        signals.append(signum)
        raise SystemExit(1)

    monkeypatch.setattr(interrupts, "current_process", lambda: SimpleNamespace(name="ForkPoolWorker-1"))
    monkeypatch.setattr(interrupts, "_stopped", bytearray(b"\x01"))
    before = signal.signal(signal.SIGTERM, handle)
    yield signals
    signal.signal(signal.SIGTERM, before)
    interrupts._hold = None


def tell() -> None:
    signal.raise_signal(signal.SIGTERM)


def test_a_stop_waits_for_what_is_over(heard: list[int]) -> None:
    work = Work(over=False)
    hold(work)
    work.over = True
    tell()
    tell()
    assert heard == []
    with pytest.raises(SystemExit):
        release(work)
    assert heard == [signal.SIGTERM]


def test_a_body_is_ended_at_once(heard: list[int]) -> None:
    work = Work(over=False)
    hold(work)
    with pytest.raises(SystemExit) as raised:
        tell()
    assert work.ends_by is raised.value
    release(work)
    assert heard == [signal.SIGTERM]


def test_what_is_no_stop_waits_for_nothing(heard: list[int]) -> None:
    """A run that somebody terminates is REVOKED already."""
    interrupts._stopped[0] = 0
    hold(Work(over=True))
    with pytest.raises(SystemExit):
        tell()


def test_a_stop_waits_so_long_and_no_longer(heard: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "HOLD_S", 0.05)
    work = Work(over=True)
    hold(work)
    tell()
    with pytest.raises(SystemExit) as raised:
        wait_until(lambda: heard, 30, "the signal is heard")
    assert work.ends_by is raised.value


def test_a_stop_waits_for_nothing_where_no_thread_can_be_started(
    heard: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    hold(Work(over=True))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(SystemExit):
            tell()


@pytest.mark.parametrize("at_work", [True, False])
def test_a_handler_that_a_body_left_is_no_hold(heard: list[int], at_work: bool) -> None:
    work, after = Work(over=False), Work(over=False)
    hold(work)
    kept: Any = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda signum, frame: kept(signum, frame))
    work.over = True
    release(work)
    if at_work:
        hold(after)
    with pytest.raises(SystemExit) as raised:
        tell()
    assert after.ends_by is (raised.value if at_work else None)
    assert heard == [signal.SIGTERM]


def test_what_was_released_gives_way(heard: list[int]) -> None:
    works = [Work(over=True), Work(over=False)]
    for work in works:
        hold(work)
        release(work)
    with pytest.raises(SystemExit):
        tell()
    assert works[0].ends_by is works[1].ends_by is None
