"""Redis gives a message to a worker that dies before it has looked at it: nobody has it any more."""

import pytest
from redis import Redis

from tests.acceptance.plane import Api, Plane
from tests.processes import Process, wait_until

pytestmark = [pytest.mark.acceptance, pytest.mark.long]


def handed_out_in_its_sleep(api: Api, victim: Process, broker: Redis) -> str:
    """A run whose message Redis gave to the stopped worker: it has to be stopped while it waits, for a second each."""
    for _ in range(10):
        victim.pause()
        run: str = api.post("/runs", {"task": "test.add", "args": [1, 2]}, 201)["id"]
        wait_until(lambda run=run: api.get(f"/runs/{run}")["dispatch_time"], 20, "it is dispatched")
        if broker.llen("default") == 0:
            return run
        victim.resume()
        wait_until(lambda run=run: api.get(f"/runs/{run}")["end_time"], 30, "this one was not")
    raise AssertionError("it never waited when it was stopped")


def test_a_message_that_died_with_its_worker_is_sent_again(plane: Plane) -> None:
    api = plane.api()
    plane.scheduler(JOBPLANE_DISPATCH_TIMEOUT_S="5")
    api.await_queue("default")
    victim = plane.worker(name="victim", options=("-c", "1"))
    with Redis.from_url(plane.broker_url) as broker:
        run = handed_out_in_its_sleep(api, victim, broker)
        victim.kill()
        assert broker.llen("default") == broker.hlen("unacked") == 0, "the message is gone"
    plane.worker(name="heir", options=("-c", "1"))
    found = wait_until(lambda: (row := api.get(f"/runs/{run}"))["end_time"] and row, 90, "the run ends")
    assert (found["state"], found["result"], found["attempt"], found["attempts"]) == ("SUCCESS", 3, 1, [])
    assert found["worker"].startswith("heir@")
