"""Tasks and workers as they are shown, and what saving work that nobody can run answers."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.api.schemas.catalogue import EXAMPLE_TASK, EXAMPLE_WORKER, TaskOut, WorkerOut
from app.catalogue.look import LIVE_S
from app.catalogue.recheck import BATCH, Recheck
from app.database import Database, clock
from tests.api.conftest import a_job
from workers.contracts import contract_of

JOBS, RUNS = "/api/v1/jobs", "/api/v1/runs"


def digest(path: str, depth: int = 1) -> dict[str, str]:
    """What stands in files.

    And more.
    """
    raise NotImplementedError


def newer(path: str, depth: int = 1, *, since: str) -> None: ...


async def worker(database: Database, node: str, *tasks: str, age_s: float = 0, ours: bool = True, **more: Any) -> None:
    """A worker as the scheduler saw it so long ago; `contracts` are functions by task."""
    functions: dict[str, Callable[..., Any]] = more.get("contracts", {})
    async with database.transaction() as connection:
        await connection.execute(
            """
            INSERT INTO workers (node, ours, software, queues, tasks, contracts, contracts_digest, pool, concurrency,
                start_time, first_seen_time, seen_time)
            SELECT $1, $2, 'py-celery 5.7.0', $3, $4, $5, $6, $8, 2, at, at, at
            FROM (SELECT clock_timestamp() - make_interval(secs => $7) AS at) AS t
            ON CONFLICT (node) DO UPDATE SET contracts = excluded.contracts,
                contracts_digest = excluded.contracts_digest, seen_time = excluded.seen_time
            """,
            node,
            ours,
            more.get("queues", ["default"]),
            list(tasks),
            {task: contract_of(function) for task, function in functions.items()},
            more.get("digest", str(sorted(f"{t}{f.__name__}" for t, f in functions.items())) if functions else ""),
            age_s,
            more.get("pool", "prefork"),
        )


async def sighted(database: Database, consumers: int | None, *nodes: str) -> None:
    """What the scheduler saw of the queue `default` a moment ago."""
    async with database.transaction() as connection:
        await connection.execute(
            """
            INSERT INTO queue_sightings (queue, ready, consumers, workers, look_time)
            VALUES ('default', 0, $1, $2, clock_timestamp())
            ON CONFLICT (queue) DO UPDATE SET consumers = $1, workers = $2, look_time = clock_timestamp()
            """,
            consumers,
            list(nodes),
        )


def codes(answer: httpx.Response) -> list[str]:
    assert answer.is_success, answer.text
    return [warning["code"] for warning in answer.json()["warnings"]]


def pointers(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 422, answer.text
    return [error["pointer"] for error in answer.json()["errors"]]


@pytest.mark.parametrize(("model", "example"), [(TaskOut, EXAMPLE_TASK), (WorkerOut, EXAMPLE_WORKER)])
def test_examples_are_what_their_models_say(model: Any, example: dict[str, Any]) -> None:
    model.model_validate(example)


async def test_workers_are_listed_page_by_page(client: httpx.AsyncClient, database: Database) -> None:
    await worker(database, "a@h", "svc.add", ours=False, queues=["one", "two"])
    await worker(database, "b@h", "svc.add", "files.digest", queues=["two"], contracts={"files.digest": digest})
    await worker(database, "gone@h", "svc.old", age_s=LIVE_S + 10, queues=["one"])
    first = (await client.get("/api/v1/workers", params={"limit": 2})).json()
    assert [item["node"] for item in first["items"]] == ["a@h", "b@h"]
    rest = (await client.get("/api/v1/workers", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert rest["next_cursor"] is None
    (gone,) = rest["items"]
    assert (gone["node"], gone["alive"], gone["tasks"]) == ("gone@h", False, ["svc.old"])
    told = first["items"][0]
    assert (told["ours"], told["alive"], told["queues"], told["pool"]) == (False, True, ["one", "two"], "prefork")
    assert (told["active"], told["concurrency"]) == (None, 2)
    WorkerOut.model_validate(told)
    for name, nodes in {"one": ["a@h", "gone@h"], "two": ["a@h", "b@h"], "three": []}.items():
        found = (await client.get("/api/v1/workers", params={"queue": name})).json()
        assert [item["node"] for item in found["items"]] == nodes
    crossed = await client.get("/api/v1/tasks", params={"cursor": first["next_cursor"]})
    assert (crossed.status_code, crossed.json()["type"]) == (400, "/problems/cursor-mismatch")


async def test_tasks_are_what_live_workers_register(client: httpx.AsyncClient, database: Database) -> None:
    await worker(database, "a@h", "svc.add", "svc.mul", ours=False, queues=["one", "two"])
    await worker(
        database, "old@h", "files.digest", age_s=5, queues=["two"], contracts={"files.digest": digest}, digest="1"
    )
    await worker(
        database, "new@h", "files.digest", "svc.add", queues=["three"], contracts={"files.digest": newer}, digest="2"
    )
    await worker(database, "gone@h", "svc.old", age_s=LIVE_S + 10)
    first = (await client.get("/api/v1/tasks", params={"limit": 2})).json()
    rest = (await client.get("/api/v1/tasks", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    tasks = {item["name"]: item for item in first["items"] + rest["items"]}
    assert list(tasks) == ["files.digest", "svc.add", "svc.mul"]
    assert rest["next_cursor"] is None
    assert tasks["svc.add"] == {
        "name": "svc.add",
        "queues": ["one", "three", "two"],
        "workers": ["a@h", "new@h"],
        "contract": None,
    }
    told = tasks["files.digest"]
    TaskOut.model_validate(told)
    assert told["contract"]["signature"] == "(path: str, depth: int = 1, *, since: str) -> None", "of the newest"
    assert told["contract"]["schema"]["required"] == ["path", "since"]
    (one,) = (await client.get("/api/v1/tasks", params={"queue": "two", "name": "files.digest"})).json()["items"]
    assert one["workers"] == ["old@h"]
    assert one["contract"]["doc"] == "What stands in files."
    assert (await client.get("/api/v1/tasks", params={"queue": "nowhere"})).json()["items"] == []


async def test_a_job_that_nobody_can_run_is_warned_of(
    client: httpx.AsyncClient, queue: str, database: Database
) -> None:
    made = await client.post(JOBS, json=a_job())
    assert codes(made) == ["no_worker"]
    url = f"{JOBS}/{made.json()['id']}"
    assert (await client.get(url)).json()["warnings"] is None
    assert (await client.get(JOBS)).json()["items"][0]["warnings"] is None
    assert pointers(await client.post(JOBS, json=a_job(name="b"), params={"strict": True})) == ["/queue"]
    assert pointers(await client.post(RUNS, json={"task": "files.digest"}, params={"strict": True})) == ["/queue"]
    assert len((await client.get(JOBS)).json()["items"]) == 1, "nothing is left of what was refused"

    await sighted(database, 1)
    assert codes(await client.patch(url, json={"description": "1"})) == [], "somebody whom we do not know"
    await worker(database, "thief@h", "svc.other", ours=False)
    await sighted(database, 2, "thief@h")
    assert codes(await client.patch(url, json={"description": "2"})) == [], "the other one may register it"
    await sighted(database, 1, "thief@h")
    told = await client.patch(url, json={"description": "3"})
    assert codes(told) == ["task_not_registered"]
    assert "thief@h consumes it" in told.json()["warnings"][0]["detail"]
    refused = await client.patch(url, json={"description": "4"}, params={"strict": True})
    assert pointers(refused) == ["/task"]
    assert refused.json()["errors"][0]["detail"] == told.json()["warnings"][0]["detail"]

    await worker(database, "good@h", "files.digest", ours=False)
    told = await client.put(url, json=a_job())
    assert codes(told) == ["some_lack_task"]
    assert "thief@h" in told.json()["warnings"][0]["detail"]
    assert pointers(await client.post(RUNS, json={"task": "files.digest"}, params={"strict": True})) == ["/task"]
    assert (await client.post(RUNS, json={"task": "files.digest"})).status_code == 201
    await sighted(database, 1, "good@h")
    assert codes(await client.put(url, json=a_job(), params={"strict": True})) == [], "the thief has gone"

    async with database.transaction() as connection:
        await connection.execute("UPDATE queues SET consumer_timeout_s = 60")
    made = await client.post(JOBS, json=a_job(name="c"), params={"strict": True})
    assert codes(made) == ["consumer_timeout"]
    assert codes(await client.post(JOBS, json=a_job(name="d", time_limit_s=50))) == []


async def test_a_time_limit_that_a_pool_cannot_keep_is_told(
    client: httpx.AsyncClient, queue: str, database: Database
) -> None:
    limits = {"time_limit_s": 60, "soft_time_limit_s": 50}
    await worker(database, "ours@h", "files.digest", pool="threads")
    made = await client.post(JOBS, json=a_job(**limits))
    assert codes(made) == ["time_limit"]
    assert made.json()["warnings"][0]["detail"].startswith("ours@h keeps no hard time limit")
    await worker(database, "stock@h", "files.digest", pool="solo", ours=False)
    url = f"{JOBS}/{made.json()['id']}"
    both = await client.patch(url, json={"description": "1"}, params={"strict": True})
    assert [each["detail"].partition(":")[0] for each in both.json()["warnings"]] == [
        "ours@h, stock@h keep no hard time limit",
        "stock@h keeps no soft time limit",
    ]
    assert codes(await client.patch(url, json={"time_limit_s": None, "soft_time_limit_s": None})) == []


async def test_arguments_that_cannot_fit_are_refused(client: httpx.AsyncClient, queue: str, database: Database) -> None:
    await worker(database, "a@h", "files.digest", contracts={"files.digest": digest})
    assert pointers(await client.post(JOBS, json=a_job())) == ["/kwargs/path"]
    assert pointers(await client.post(JOBS, json=a_job(args=[1, "x", 3]))) == ["/args/2", "/args/0", "/args/1"]
    assert pointers(await client.post(RUNS, json={"task": "files.digest", "kwargs": {"pth": "x"}})) == [
        "/kwargs/pth",
        "/kwargs/path",
    ]
    made = await client.post(JOBS, json=a_job(args=["/srv"]))
    assert codes(made) == []
    url = f"{JOBS}/{made.json()['id']}"
    assert pointers(await client.patch(url, json={"kwargs": {"depth": "deep"}})) == ["/kwargs/depth"]
    assert pointers(await client.put(url, json=a_job(kwargs={"path": "/srv", "depth": None}))) == ["/kwargs/depth"]
    assert (await client.post(RUNS, json={"task": "files.digest", "args": ["/srv"]})).status_code == 201

    # In a rolling deploy two versions are there: what fits one of them passes.
    await worker(database, "b@h", "files.digest", contracts={"files.digest": newer})
    assert codes(await client.patch(url, json={"kwargs": {"since": "today"}})) == []
    assert pointers(await client.patch(url, json={"kwargs": {"since": 1}})) == ["/kwargs/since"]
    # A worker that tells no contract changes nothing.
    await worker(database, "c@h", "files.digest", contracts={})
    assert pointers(await client.patch(url, json={"kwargs": {"since": 1}})) == ["/kwargs/since"]
    # Without live workers nothing is known.
    async with database.transaction() as connection:
        await connection.execute("UPDATE workers SET seen_time = seen_time - interval '1 min'")
    assert codes(await client.patch(url, json={"kwargs": {"since": 1}})) == ["no_worker"]


async def test_jobs_that_fit_no_more_are_found(client: httpx.AsyncClient, queue: str, database: Database) -> None:
    await worker(database, "a@h", "files.digest", "svc.add", contracts={"files.digest": digest})
    kept = (await client.post(JOBS, json=a_job(args=["/srv"]))).json()
    other = (await client.post(JOBS, json=a_job(name="other", task="svc.add", args=[1, 2, 3]))).json()
    recheck = Recheck(database)

    async def step() -> None:
        async with database.reading() as connection:
            now = await clock(connection)
        await recheck.step(now, LIVE_S)

    async def troubled(kind: str = "contract") -> list[str]:
        return [item["id"] for item in (await client.get(JOBS, params={"problem": kind})).json()["items"]]

    await step()
    assert await troubled() == []
    await worker(database, "a@h", "files.digest", "svc.add", contracts={"files.digest": newer})
    await step()
    assert await troubled() == [kept["id"]]
    assert await troubled("parked") == []
    url = f"{JOBS}/{kept['id']}"
    assert (await client.get(url)).json()["contract_problem"] == "/kwargs/since: is required"
    # Another change of it is not refused; other arguments that do not fit are.
    told = await client.patch(url, json={"enabled": False})
    assert codes(told) == ["contract"]
    assert told.json()["contract_problem"] == "/kwargs/since: is required"
    assert pointers(await client.patch(url, json={"args": ["/opt"]})) == ["/kwargs/since"]
    fits = await client.patch(url, json={"kwargs": {"since": "today"}})
    assert codes(fits) == []
    assert fits.json()["contract_problem"] is None
    assert await troubled() == []

    # The old version back: the next pass says so, and clears it when the new one is there again.
    await worker(database, "a@h", "files.digest", "svc.add", contracts={"files.digest": digest})
    await step()
    assert await troubled() == [kept["id"]]
    await worker(database, "a@h", "files.digest", "svc.add", contracts={"files.digest": newer})
    await step()
    assert await troubled() == []
    assert (await client.get(f"{JOBS}/{other['id']}")).json()["contract_problem"] is None, "nobody told of its task"

    async with database.transaction() as connection:
        await connection.execute("UPDATE jobs SET problem = 'no such zone', next_run_time = NULL WHERE name = 'other'")
    assert await troubled("parked") == [other["id"]]
    assert (await client.get(JOBS, params={"problem": "else"})).status_code == 422


async def test_a_trigger_with_arguments_of_its_own_is_looked_at(
    client: httpx.AsyncClient, queue: str, database: Database
) -> None:
    await worker(database, "a@h", "files.digest", contracts={"files.digest": digest})
    assert (await client.post("/api/v1/queues", json={"name": "else"})).status_code == 201
    await worker(database, "b@h", "files.digest", queues=["else"], contracts={"files.digest": newer})
    made = await client.post(JOBS, json=a_job(args=["/srv"]))
    url = f"{JOBS}/{made.json()['id']}/trigger"
    assert pointers(await client.post(url, json={"args": [1]})) == ["/args/0"]
    assert pointers(await client.post(url, json={"kwargs": {"depht": 2}})) == ["/kwargs/depht"]
    assert pointers(await client.post(url, json={"queue": "else"})) == ["/kwargs/since"]
    assert (await client.post(url, json={"queue": "else", "kwargs": {"since": "today"}})).status_code == 201
    assert (await client.post(url, json={"kwargs": {"depth": 2}})).status_code == 201
    # What was saved and fits no more can be tried, as its schedule does.
    await worker(database, "a@h", "files.digest", contracts={"files.digest": newer})
    run = await client.post(url)
    assert run.status_code == 201
    assert (await client.post(f"/api/v1/runs/{run.json()['id']}/cancel")).is_success
    assert (await client.post(f"/api/v1/runs/{run.json()['id']}/retry")).status_code == 201


async def test_many_jobs_are_looked_at_in_batches(client: httpx.AsyncClient, queue: str, database: Database) -> None:
    await client.post(JOBS, json=a_job(args=["/srv"]))
    await worker(database, "a@h", "files.digest", contracts={"files.digest": newer})
    count = BATCH * 2 + 1
    async with database.transaction() as connection:
        await connection.execute(
            """
            INSERT INTO jobs (id, namespace, name, task, args, queue, trigger, enabled, overlap, misfire,
                catchup_window_s, retry, author, cursor_time)
            SELECT gen_random_uuid(), namespace, 'job ' || n, task, args, queue, trigger, false, overlap, misfire,
                catchup_window_s, retry, author, cursor_time
            FROM jobs, generate_series(2, $1) AS n
            """,
            count,
        )
        now = await clock(connection)
    await Recheck(database).step(now, LIVE_S)
    async with database.reading() as connection:
        assert await connection.fetchval("SELECT count(*) FROM jobs WHERE contract_problem IS NOT NULL") == count
