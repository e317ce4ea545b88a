"""A worker of one service is started on the queue of another by mistake: no run is lost, and the trouble is named."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.acceptance.plane import HERE, Api, Plane
from tests.acceptance.watching import Watcher
from tests.processes import Process, wait_until

pytestmark = pytest.mark.acceptance

SHARED_NAME = "apps.tasks.scheduled_job.calc_post_score"
ONLY_IN_B = "apps.tasks.only_in_b"
A, B = "service_a", "service_b_jobs"
HELD = "no worker on the queue registers the task (thief@h consumes it)"


@pytest.fixture(params=[pytest.param("valkey", marks=pytest.mark.long), "rabbitmq"])
def plane(request: pytest.FixtureRequest, database_url: str, redis_url: str, start_process: Any) -> Plane:
    broker_url = redis_url if request.param == "valkey" else request.getfixturevalue("amqp_url")
    return Plane(start_process, database_url, redis_url, broker_url)


@pytest.fixture
def service(plane: Plane, start_process: Callable[..., Process]) -> Callable[..., Process]:
    """Start a worker of the code base of service A or B, as its team would."""

    def start(folder: str, node: str, *options: str, **environment: str) -> Process:
        worker = start_process(
            [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-n", f"{node}@h", "-l", "info", *options],
            name=f"service-{node}",
            cwd=HERE / "services" / folder,
            env={"SERVICE_BROKER_URL": plane.broker_url, "SERVICE_REDIS_URL": plane.redis_url, **environment},
        )
        worker.wait_for_line("ready.", 60)
        return worker

    return start


def post(api: Api, task: str, queue: str, *args: Any) -> str:
    body = {"task": task, "queue": queue, "namespace": {A: "team_a", B: "team_b"}[queue], "args": args}
    return str(api.post("/runs", body, 201)["id"])


def result_of(api: Api, run: str) -> dict[str, Any]:
    """The run, ended well in its first attempt."""
    found: dict[str, Any] = wait_until(
        lambda: (row := api.get(f"/runs/{run}"))["end_time"] and row, 90, f"end of {run}"
    )
    assert (found["state"], found["attempt"], found["attempts"]) == ("SUCCESS", 1, []), found
    return found


def test_a_thief_loses_nothing_and_is_named(plane: Plane, service: Callable[..., Process]) -> None:
    api = plane.api()
    scheduler = plane.scheduler()
    service("a", "rightful")
    api.queue(A, namespace="team_a", exchange="service_a_exchange", routing_key="a.jobs")
    api.queue(
        B, namespace="team_b", exchange="service_b_topic", exchange_type="topic", routing_key="b.work", type="quorum"
    )
    thief = service("a", "thief", "-Q", B, SERVICE_QUEUE_TYPE="quorum")
    wait_until(lambda: "queue_consumers_changed" in scheduler.output() and seen(api, "thief@h"), 30, "it is seen")

    with Watcher(api.socket, query="interval_ms=50") as watcher:
        wait_until(lambda: watcher.live, 30, "the feed is live")
        # Alone on the queue it gets nothing that it does not know.
        waiting = [post(api, ONLY_IN_B, B) for _ in range(10)]
        for run in waiting:
            row = wait_until(lambda run=run: (row := api.get(f"/runs/{run}"))["reason"] == HELD and row, 30, "held")
            assert (row["state"], row["attempt"], row["dispatch_time"]) == ("PENDING", 1, None)
        why = api.get(f"/runs/{waiting[0]}/why")["items"]
        assert next((one["code"], one["workers"]) for one in why) == ("task_not_registered", ["thief@h"]), why
        wait_until(lambda: HELD in reasons(watcher, waiting[0]), 30, "the feed tells")
        assert scheduler.wait_for_line("runs_held ").count("thief@h") == 1

        # Beside B's own worker it takes some, and gives them up.
        service("b", "owner")
        taken = [post(api, ONLY_IN_B, B) for _ in range(10)]
        everything = [*waiting, *taken]

        def stolen() -> list[str]:
            more = [post(api, ONLY_IN_B, B)]
            everything.extend(more)
            said = {run: reasons(watcher, run) for run in everything}
            return [run for run in everything if any(reason.startswith("not registered: ") for reason in said[run])]

        run = wait_until(stolen, 60, "the feed tells of one that was taken")[0]
        why = api.get(f"/runs/{run}/why")["items"]
        assert next(one["code"] for one in why) in {"not_registered_taken", "ended", "dispatched_waiting"}, why
        line = scheduler.wait_for_line("workers_of_a_queue_differ", 40)
        assert "thief@h" in line
        assert ONLY_IN_B in line
        thief.stop(30)
        for run in everything:
            row = result_of(api, run)
            assert (row["result"], row["worker"]) == ("B", "owner@h")

    # A task of the same name is in both: each queue has the one of its own service.
    for queue, factor, name in ((A, 2, "A"), (B, 3, "B")):
        runs = {post(api, SHARED_NAME, queue, n): n for n in range(20)}
        for run, n in runs.items():
            result = result_of(api, run)["result"]
            assert (result["service"], result["post"], result["score"]) == (name, n, n * factor)


def seen(api: Api, node: str) -> bool:
    """Whether the plane knows that this worker lives."""
    return any(worker["node"] == node for worker in api.every("/workers"))


def reasons(watcher: Watcher, run: str) -> set[str]:
    """Every reason that the feed has shown of this run."""
    return {value["reason"] for value in watcher.seen().get(run, []) if value["reason"]}
