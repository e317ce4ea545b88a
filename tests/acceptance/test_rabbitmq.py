"""The plane on RabbitMQ: its own quorum queue, and the services of other teams on the same broker."""

import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.following import follow_a_job_each_second
from tests.acceptance.plane import HERE, Api, Plane
from tests.processes import Process, wait_until
from tests.servers import RabbitMQ

pytestmark = pytest.mark.acceptance

SHARED_NAME = "apps.tasks.scheduled_job.calc_post_score"
RUNS = 100
#: The plane's own queues on a broker: the one for work, and those for replies and dead letters.
OURS = {"default", "jobplane.replies", "jobplane.dead"}

Service = Callable[..., Process]


@dataclass(frozen=True, slots=True)
class Found:
    """A queue as the broker has it; `messages` counts those that are not acknowledged yet too."""

    type: str
    arguments: str
    messages: int


class Broker:
    """What `rabbitmqctl` says of one virtual host; each question takes a second or two."""

    def __init__(self, server: RabbitMQ, url: str) -> None:
        self._server = server
        self._vhost = url.rpartition("/")[2]

    def queues(self) -> dict[str, Found]:
        """The queues of work: without Celery's mailboxes and those in which it lets messages wait (28 a broker)."""
        columns = ("name", "type", "arguments", "messages", "durable", "auto_delete")
        lines = self._server.control("list_queues", "-p", self._vhost, "--no-table-headers", *columns).splitlines()
        found = {}
        for line in lines:
            name, kind, arguments, messages, durable, auto_delete = line.split("\t")
            if (durable, auto_delete) == ("true", "false") and not name.startswith("celery_delayed_"):
                found[name] = Found(kind, arguments, int(messages))
        return found

    def await_silence(self) -> dict[str, Found]:
        """The queues, once every message is acknowledged."""

        def silent() -> dict[str, Found] | None:
            found = self.queues()
            return found if all(queue.messages == 0 for queue in found.values()) else None

        return wait_until(silent, 40, "every message is acknowledged") or {}


@pytest.fixture
def broker(rabbitmq_server: RabbitMQ, amqp_url: str) -> Broker:
    return Broker(rabbitmq_server, amqp_url)


@pytest.fixture
def service(amqp_url: str, redis_url: str, start_process: Callable[..., Process]) -> Service:
    """Start the stock worker of a code base under `services/`, as its team would, with nothing of ours."""

    def start(folder: str, *options: str, **environment: str) -> Process:
        return start_process(
            [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-n", f"{folder}@%h", "-l", "info", *options],
            name=f"service-{folder}",
            cwd=HERE / "services" / folder,
            env={"SERVICE_BROKER_URL": amqp_url, "SERVICE_REDIS_URL": redis_url, **environment},
        )

    return start


def received(worker: Process) -> set[str]:
    """The runs whose messages this worker took in."""
    return set(re.findall(r"Task \S+\[([0-9a-f-]{36})\.\d+\] received", worker.output()))


def refusals(worker: Process) -> list[str]:
    """Lines that tell of a declaration that the broker refused or of a message that the worker does not know."""
    words = ("PRECONDITION_FAILED", "unregistered task", "NotRegistered", "Traceback", "CRITICAL")
    return [line for line in worker.output().splitlines() if any(word in line for word in words)]


def run_to_its_end(api: Api, task: str, queue: str, namespace: str = "default") -> dict[str, Any]:
    run = api.post("/runs", {"task": task, "queue": queue, "namespace": namespace}, 201)
    ended: dict[str, Any] = wait_until(
        lambda: (found := api.get(f"/runs/{run['id']}"))["end_time"] and found, 40, f"the run of {task} on {queue} ends"
    )
    return ended


@pytest.mark.long
def test_twenty_seconds_twenty_runs_through_a_quorum_queue(amqp_plane: Plane, broker: Broker, tmp_path: Path) -> None:
    api = amqp_plane.api()
    amqp_plane.scheduler()
    api.await_queue("default")
    worker = amqp_plane.worker("default")
    worker.wait_for_line("queue_consumed", 20)
    runs = follow_a_job_each_second(api, 20, tmp_path)
    assert received(worker) == {run["id"] for run in runs}
    assert {run["attempt"] for run in runs} == {1}
    queue = api.get("/queues/default")
    assert (queue["type"], queue["adopted"], queue["problem"]) == ("quorum", False, None)
    assert {name: found.type for name, found in broker.await_silence().items()} == dict.fromkeys(OURS, "quorum")


@pytest.mark.long
def test_two_services_of_other_teams_share_the_broker_and_never_meet(
    amqp_plane: Plane, broker: Broker, service: Service
) -> None:
    workers = {"A": service("a"), "B": service("b")}
    for worker in workers.values():
        worker.wait_for_line("ready.", 60)
    theirs = broker.queues()
    assert theirs.keys() == {"service_a", "service_b_jobs", "service_b_mail"}

    api = amqp_plane.api()
    amqp_plane.scheduler()
    api.queue("service_a", namespace="team_a", exchange="service_a_exchange", routing_key="a.jobs")
    api.queue(
        "service_b_jobs",
        namespace="team_b",
        exchange="service_b_topic",
        exchange_type="topic",
        routing_key="b.work",
        type="quorum",
    )
    homes = {"A": ("service_a", "team_a"), "B": ("service_b_jobs", "team_b")}
    for queue, _ in homes.values():
        found = api.get(f"/queues/{queue}")
        assert (found["adopted"], found["problem"]) == (True, None)
    jobs = {
        name: api.job("scores", SHARED_NAME, 86400, queue=queue, namespace=namespace, args=[0])
        for name, (queue, namespace) in homes.items()
    }

    def trigger(name: str) -> list[str]:
        path = f"/jobs/{jobs[name]['id']}/trigger"
        return [api.post(path, {"args": [post]}, 201)["id"] for post in range(RUNS)]

    with ThreadPoolExecutor() as at_once:
        asked = dict(zip(jobs, at_once.map(trigger, jobs), strict=True))
    for name, factor in (("A", 2), ("B", 3)):
        runs = api.ended(RUNS, 60, job_id=jobs[name]["id"])
        assert {run["id"] for run in runs} == set(asked[name])
        assert {run["state"] for run in runs} == {"SUCCESS"}
        results = {(run["result"]["service"], run["result"]["post"], run["result"]["score"]) for run in runs}
        assert results == {(name, post, post * factor) for post in range(RUNS)}
        assert {(run["attempt"], run["worker"].partition("@")[0]) for run in runs} == {(1, name.lower())}
        assert received(workers[name]) == set(asked[name]), "each message went to its own service, once"
    progress = next(api.every("/runs", job_id=jobs["A"]["id"]))["progress"]
    assert (progress["current"], progress["total"]) == (2, 2)
    assert run_to_its_end(api, "apps.tasks.only_in_a", *homes["A"])["result"] == "A"
    assert run_to_its_end(api, "apps.tasks.only_in_b", *homes["B"])["result"] == "B"
    found = broker.await_silence()
    assert found.keys() == theirs.keys() | OURS
    assert {name: found[name] for name in theirs} == theirs, "their queues are as they declared them"

    for worker in workers.values():
        assert worker.stop(30) == 0
    again = [service("a"), service("b")]
    for worker in again:
        worker.wait_for_line("ready.", 60)
    assert run_to_its_end(api, "apps.tasks.only_in_a", *homes["A"])["result"] == "A"
    assert run_to_its_end(api, "apps.tasks.only_in_b", *homes["B"])["result"] == "B"
    found = broker.await_silence()
    assert {name: found[name] for name in theirs} == theirs
    for worker in (*workers.values(), *again):
        assert refusals(worker) == []


@pytest.mark.parametrize("kind", ["classic", pytest.param("quorum", marks=pytest.mark.long)])
def test_a_queue_that_the_plane_made_first_is_the_one_that_a_stock_service_declares(
    amqp_plane: Plane, broker: Broker, service: Service, kind: str
) -> None:
    api = amqp_plane.api()
    amqp_plane.scheduler()
    api.queue("made_first", type=kind)
    assert api.get("/queues/made_first")["adopted"] is False
    ours = broker.queues()
    assert ours["made_first"].type == kind
    worker = service("c", "-Q", "made_first", SERVICE_QUEUE_TYPE=kind)
    worker.wait_for_line("ready.", 60)
    ended = run_to_its_end(api, "apps.tasks.where", "made_first")
    assert (ended["state"], ended["result"]) == ("SUCCESS", "C")
    assert refusals(worker) == []
    assert broker.await_silence() == ours
    assert worker.stop(30) == 0
