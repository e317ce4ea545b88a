"""Fifty runs at work on two workers of ours, of which one is killed, stopped, or cut off: each run ends and says what
happened, and no two bodies of one are at work but for the moment in which a stopped one wakes."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.acceptance.plane import Api, Plane, begun, overlaps, post_run, sleep_until, witnessed
from tests.processes import Process, wait_until
from tests.proxy import TcpProxy
from workers.protocol import HEARTBEAT_S, LEASE_S

pytestmark = [pytest.mark.acceptance, pytest.mark.long, pytest.mark.timeout(400)]

RUNS = 50
#: A third of a minute, which begins when all are at work. It is over before a lease is: what RabbitMQ delivers again is
#: refused then, and what is lost is found to be.
STEPS, STEP_S = 45, 0.4


@pytest.fixture(params=["valkey", "rabbitmq"])
def either_plane(request: pytest.FixtureRequest) -> Plane:
    """A plane on each kind of broker."""
    plane: Plane = request.getfixturevalue({"valkey": "plane", "rabbitmq": "amqp_plane"}[request.param])
    return plane


@pytest.fixture
def broker_proxy(either_plane: Plane) -> Iterator[TcpProxy]:
    yield from _proxy_to(either_plane.broker_url)


@pytest.fixture
def redis_proxy(either_plane: Plane) -> Iterator[TcpProxy]:
    yield from _proxy_to(either_plane.redis_url)


def _proxy_to(url: str) -> Iterator[TcpProxy]:
    port = urlsplit(url).port
    assert port
    with TcpProxy("127.0.0.1", port) as proxy:
        yield proxy


def through(url: str, proxy: TcpProxy) -> str:
    return url.replace(f":{urlsplit(url).port}", f":{proxy.port}")


@dataclass
class Work:
    """Fifty runs at work: half of them on the worker that is to be in trouble."""

    api: Api
    witness: Path
    steps: int
    victim: Process
    runs: list[str]
    #: Of these the victim has the body.
    victims: list[str]

    @classmethod
    def begin(cls, plane: Plane, witness: Path, steps: int = STEPS, **victim: str) -> "Work":
        api = plane.api()
        plane.scheduler()
        api.await_queue("default")
        in_trouble = plane.worker(name="victim", options=("-c", str(RUNS // 2)), **victim)
        plane.worker(name="heir", options=("-c", str(RUNS // 2)))
        gate = witness.with_name("gate")
        runs = [post_run(api, steps, STEP_S, witness, gate=gate) for _ in range(RUNS)]
        wait_until(lambda: len(begun(witness)) == RUNS, 60, "all have begun")

        def placed() -> list[dict[str, Any]]:
            found = list(api.every("/runs"))
            return found if all(run["worker"] for run in found) else []

        at_work = wait_until(placed, 60, "all are known to have begun")
        assert not [run["id"] for run in at_work if run["end_time"]], "all are at work at once"
        victims = [run["id"] for run in at_work if run["worker"].startswith("victim@")]
        assert len(victims) >= RUNS // 4
        gate.touch()
        return cls(api, witness, steps, in_trouble, runs, victims)

    def begun_again(self) -> bool:
        """Whether every run of the victim has a second body."""
        bodies = begun(self.witness)
        return all(bodies[run] == 2 for run in self.victims)

    def end(self, lost: list[str]) -> None:
        """Wait for every end; those that were lost say so and were done by the other worker."""
        found = {run["id"]: run for run in self.api.ended(RUNS, 150)}
        assert found.keys() == set(self.runs)
        assert Counter(run["state"] for run in found.values()) == {"SUCCESS": RUNS}
        bodies = begun(self.witness)
        for run_id, run in found.items():
            expected = ["WorkerLost"] if run_id in lost else []
            assert [kept["error"]["type"] for kept in run["attempts"]] == expected, run
            assert run["attempt"] == bodies[run_id] == len(expected) + 1, run
            assert run["result"] == {"steps": self.steps}
            attempts = [event["attempt"] for event in self.api.every(f"/runs/{run_id}/events")]
            assert attempts == sorted(attempts), "no word of an attempt after the next one began"
            if run_id in lost:
                assert run["attempts"][0]["worker"].startswith("victim@")
                assert not run["worker"].startswith("victim@")

    def late_s(self) -> list[float]:
        """For each run of which two bodies were at work at once: from when the later one began to the earlier's end."""
        lines = witnessed(self.witness)
        found = []
        for run in overlaps(lines):
            mine = [line for line in lines if line["run"] == run]
            first, second = dict.fromkeys(line["body"] for line in mine)
            second_began = next(line["at"] for line in mine if line["body"] == second)
            found.append(max(line["at"] for line in mine if line["body"] == first) - second_began)
        return found


def test_a_worker_that_is_killed(either_plane: Plane, tmp_path: Path) -> None:
    work = Work.begin(either_plane, tmp_path / "witness")
    work.victim.kill()
    work.end(lost=work.victims)
    assert work.late_s() == []


def test_a_worker_that_is_stopped_for_more_than_a_lease_and_continued(either_plane: Plane, tmp_path: Path) -> None:
    """Its bodies wake beside those that have taken their place, and are ended within a heartbeat."""
    work = Work.begin(either_plane, tmp_path / "witness")
    work.victim.pause()
    wait_until(work.begun_again, 120, "another worker has the runs")
    woken = time.time()
    work.victim.resume()
    work.end(lost=work.victims)
    last = [after(work, body, woken) for body in first_bodies(work)]
    print(f"bodies that woke went on for at most {max(last):.1f} s; {len(work.late_s())} overlapped")
    assert max(last) < 3 * HEARTBEAT_S


def after(work: Work, body: str, moment: float) -> float:
    """For how many seconds after this moment a body was still at work."""
    return max((line["at"] - moment for line in witnessed(work.witness) if line["body"] == body), default=0.0)


def first_bodies(work: Work) -> list[str]:
    """The bodies of the victim."""
    found: dict[str, str] = {}
    for line in witnessed(work.witness):
        if line["run"] in work.victims:
            found.setdefault(line["run"], line["body"])
    return list(found.values())


def test_a_worker_that_is_cut_off_from_redis_for_less_than_a_lease(
    either_plane: Plane, redis_proxy: TcpProxy, tmp_path: Path
) -> None:
    """Nothing comes of it: bodies go on, and their ends wait for Redis."""
    far = through(either_plane.redis_url, redis_proxy)
    steps = int(LEASE_S / 3 / STEP_S)
    work = Work.begin(either_plane, tmp_path / "witness", steps, JOBPLANE_WORKER_REDIS_URL=far)
    cut = time.monotonic()
    redis_proxy.cut()
    sleep_until(cut + LEASE_S / 2)
    redis_proxy.restore()
    work.end(lost=[])
    assert work.late_s() == []


def test_a_worker_that_is_cut_off_from_redis_for_more_than_a_lease(
    either_plane: Plane, redis_proxy: TcpProxy, tmp_path: Path
) -> None:
    """Its runs are another worker's: it ends its bodies before the leases end, and takes in no other message."""
    far = through(either_plane.redis_url, redis_proxy)
    steps = int(3 * LEASE_S / STEP_S)
    work = Work.begin(either_plane, tmp_path / "witness", steps, JOBPLANE_WORKER_REDIS_URL=far)
    redis_proxy.cut()
    either_plane.worker(name="reserve", options=("-c", str(RUNS // 2)))
    wait_until(work.begun_again, 90, "another worker has the runs")
    redis_proxy.restore()
    work.end(lost=work.victims)
    assert work.late_s() == []
    assert "resting" in work.victim.output()
    wait_until(lambda: work.victim.output().count("queue_consumed") == 2, 10, "it consumes again")


def test_a_worker_that_is_cut_off_from_the_broker(either_plane: Plane, broker_proxy: TcpProxy, tmp_path: Path) -> None:
    """Bodies go on and end; what the broker delivers again finds their lease."""
    far = through(either_plane.broker_url, broker_proxy)
    work = Work.begin(either_plane, tmp_path / "witness", JOBPLANE_WORKER_BROKER_URL=far)
    cut = time.monotonic()
    broker_proxy.cut()
    sleep_until(cut + LEASE_S)
    broker_proxy.restore()
    work.end(lost=[])
    assert work.late_s() == []
