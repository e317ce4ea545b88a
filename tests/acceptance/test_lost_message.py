"""Redis gives a message to a worker that dies before it has looked at it: nobody has it any more."""

import pytest
from redis import Redis

from tests.acceptance.plane import Plane
from tests.processes import wait_until

pytestmark = [pytest.mark.acceptance, pytest.mark.long]


def test_a_message_that_died_with_its_worker_is_sent_again(plane: Plane) -> None:
    api = plane.api()
    plane.scheduler(JOBPLANE_DISPATCH_TIMEOUT_S="5")
    api.await_queue("default")
    victim = plane.worker(name="victim", options=("-c", "1"))
    # It waits for messages, and Redis hands it the next one though it sleeps.
    victim.pause()
    run = api.post("/runs", {"task": "test.add", "args": [1, 2]}, 201)["id"]
    with Redis.from_url(plane.broker_url) as broker:
        wait_until(
            lambda: api.get(f"/runs/{run}")["dispatch_time"] and broker.llen("default") == 0, 20, "it was handed out"
        )
        victim.kill()
        assert broker.llen("default") == broker.hlen("unacked") == 0, "the message is gone"
    plane.worker(name="heir", options=("-c", "1"))
    found = wait_until(lambda: (row := api.get(f"/runs/{run}"))["end_time"] and row, 90, "the run ends")
    assert (found["state"], found["result"], found["attempt"], found["attempts"]) == ("SUCCESS", 3, 1, [])
    assert found["worker"].startswith("heir@")
