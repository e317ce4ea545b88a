"""The examples run as their README says: the commands that stand there, on a plane with both services."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from examples.community import load
from examples.community.__main__ import SERVICES
from tests.acceptance.plane import Api, Plane
from tests.acceptance.watching import Watcher
from tests.processes import Process, alive, wait_until

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "examples" / "README.md").read_text()
CONSOLES = re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)
UP = "the community site is up: "


@pytest.fixture(params=["valkey", pytest.param("rabbitmq", marks=pytest.mark.long)])
def site(
    request: pytest.FixtureRequest, plane: Plane, start_process: Callable[..., Process], tmp_path: Path
) -> Iterator[tuple[Process, Api]]:
    """What `make example` starts, on the test's servers and a free port; Ctrl-C ends all of it."""
    options = ["--port", "0", "--data-dir", str(tmp_path / "data")]
    if request.param == "rabbitmq":
        options += ["--broker", request.getfixturevalue("amqp_url")]
    process = start_process(
        [sys.executable, "-m", "examples.community", *options],
        name="community",
        cwd=ROOT,
        env={"JOBPLANE_DATABASE_URL": plane.database_url, "JOBPLANE_REDIS_URL": plane.redis_url},
    )
    line = process.wait_for_line(UP, 90)
    parts = psutil.Process(process.pid).children(recursive=True)
    yield process, Api(line.partition(UP)[2].removesuffix("/docs"))
    process.send_signal(signal.SIGINT)
    assert process.wait(40) == 0
    assert len(parts) > 6
    wait_until(lambda: not [part for part in parts if alive(part.pid)], 30, "nothing is left")


def test_the_site_runs_as_its_readme_says(site: tuple[Process, Api]) -> None:
    _, api = site
    with Watcher(api.socket, query="interval_ms=50") as watcher:
        wait_until(lambda: watcher.live, 30, "the feed is live")
        _follow_the_readme(api)
        runs = {(run["namespace"], run["job_name"]): run for run in api.every("/runs")}
        assert {run["state"] for run in runs.values()} == {"SUCCESS"}

        def all_ended() -> dict[str, list[dict[str, Any]]] | None:
            seen = watcher.seen()
            ends = [seen[run["id"]][-1]["state"] for run in runs.values() if run["id"] in seen]
            return seen if ends == ["SUCCESS"] * len(runs) else None

        seen = wait_until(all_ended, 30, "the feed has told of every end") or {}
    totals = {
        ("forum", "post-score"): 400,
        ("forum", "comment-score"): 4000,
        ("media", "upload"): 12,
        ("media", "compress"): 12,
    }
    for job, total in totals.items():
        shown = [value["progress"] for value in seen[runs[job]["id"]] if value["state"] == "PROGRESS"]
        currents = [progress["current"] for progress in shown]
        assert currents, job
        assert currents == sorted(currents)
        assert {progress["total"] for progress in shown} == {total}
    assert {value["progress"]["message"] for value in seen[runs["media", "upload"]["id"]] if value["progress"]} <= {
        f"picture-{number:02}.ppm" for number in range(1, 13)
    }

    _fires_when_it_should(api)
    _each_queue_has_its_own(api)
    _only_what_differs_is_changed(api)


def _follow_the_readme(api: Api) -> None:
    """Each command prints what stands below it, but for ids, durations and PROGRESS on the way."""
    for command, shown in _commands(CONSOLES[1]):
        said = subprocess.run(
            ["bash", "-c", command.replace(".venv/bin/", f"{Path(sys.executable).parent}/")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "JOBPLANE_URL": api.url},
        )
        assert _shape(said.stdout) == _shape(shown), f"{command}\n{said.stdout}{said.stderr}"


def _commands(console: str) -> list[tuple[str, str]]:
    """What is typed, and what it prints."""
    return [(typed, said) for typed, _, said in (part.partition("\n") for part in console.split("$ ")[1:])] or []


def _shape(text: str) -> str:
    text = re.sub(r"(?m)^(?:STARTED|PROGRESS [\d.]+%.*|SUCCESS [\d.]+%.*)\n", "", text)
    text = re.sub(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", text)
    text = re.sub(r'"bytes":\d+(?=,"files")', '"bytes":N', text)  # what zlib makes of it
    return re.sub(r"after [\d.]+ s", "after a while", text).strip()


def _ended(api: Api, run: str) -> dict[str, Any]:
    return wait_until(lambda: (row := api.get(f"/runs/{run}", wait=5, until="end"))["end_time"] and row, 60, "its end")


def _jobs(api: Api) -> dict[tuple[str, str], dict[str, Any]]:
    return {(job["namespace"], job["name"]): job for job in api.every("/jobs")}


def _fires_when_it_should(api: Api) -> None:
    for name, minute in (("post-score", 0), ("comment-score", 30)):
        job = _jobs(api)["forum", name]
        assert job["warnings"] is None
        times = [datetime.fromisoformat(time["local"]) for time in api.get(f"/jobs/{job['id']}/next", count=8)["times"]]
        assert {time.strftime("%H:%M%z") for time in times} == {
            f"{hour:02}:{minute:02}+0800" for hour in (1, 7, 13, 19)
        }
        assert len(set(times)) == 8
        # It may have fired between the two answers, eight instants a day.
        assert datetime.fromisoformat(job["next_run_time"]) in {times[0], times[3] - timedelta(days=1)}


def _each_queue_has_its_own(api: Api) -> None:
    """Both services have a task of one name, and neither gets what the other was sent."""
    asked = {
        api.post("/runs", {"task": "community.report", "queue": name, "namespace": name}, 201)["id"]: name
        for _ in range(8)
        for name in ("forum", "media")
    }
    for run, name in asked.items():
        ended = _ended(api, run)
        assert (ended["state"], ended["attempt"], ended["result"]["service"]) == ("SUCCESS", 1, name)


def _only_what_differs_is_changed(api: Api) -> None:
    wanted = yaml.safe_load(load.JOBS.read_text())
    job, queue = wanted["jobs"][0], wanted["queues"][0]
    with load.client(api.url) as client:
        before = _jobs(api)
        assert load.load_job(client, {**job, "description": "anew"}) == "changed"
        assert load.load_queue(client, {**queue, "description": "anew"}) == "changed"
        assert load.load_queue(client, queue) == "changed"
        assert load.load_job(client, job) == "changed"
        after = _jobs(api)
        assert {key for key in before if before[key]["version"] != after[key]["version"]} == {("forum", job["name"])}
        with pytest.raises(load.Refused, match="there is no queue 'elsewhere'"):
            load.load_job(client, {**job, "queue": "elsewhere"})


def test_one_command_starts_what_the_readme_starts_by_hand() -> None:
    assert CONSOLES[0] == "$ make example\n"
    recipe = re.search(r"^example:.*\n\t@exec (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert recipe is not None
    assert recipe[1] == "$(BIN)/python -m examples.community $(UP_ARGS)"
    words = {"broker": "$BROKER", "redis": "$REDIS", "folder": "$DATA"}
    for (command, variables), console in zip(SERVICES.values(), CONSOLES[3:5], strict=True):
        typed = [shlex.split(line) for line, _ in _commands(console)]
        exported = [pair for line in typed if line[0] == "export" for pair in line[1:]]
        assert sorted(exported) == sorted(f"{name}={value.format(**words)}" for name, value in variables.items())
        assert typed[-1] == command


def test_the_forum_shows_its_posts_and_knows_what_is_worth_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(load.JOBS.parent))
    from forum import create_app
    from forum.scores import heat, worth

    app = create_app({"DATABASE": str(tmp_path / "forum.sqlite")}, with_celery=False)
    assert len(app.test_client().get("/").get_json()) == 10
    assert heat(10, 0, age_h=1) > heat(10, 0, age_h=2) < heat(10, 5, age_h=2)
    assert worth(100, 10) > worth(10, 1) > worth(1, 0) > worth(1, 10) > worth(0, 0) == 0


@pytest.mark.long
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_both_services_on_jobplanes_worker(
    plane: Plane, start_process: Callable[..., Process], tmp_path: Path, pool: str
) -> None:
    """The forum as the README's last part has it, and the media service, in each pool."""
    api = plane.api()
    plane.scheduler()
    words = {"$BROKER": plane.broker_url, "$REDIS": plane.redis_url}
    with load.client(api.url) as client:
        load.load_queues(client)
        for name, console in (("forum", CONSOLES[5]), ("media", CONSOLES[4])):
            *exports, typed = [shlex.split(line) for line, _ in _commands(console)]
            pairs = [pair.split("=", 1) for line in exports for pair in line[1:]]
            start_process(
                [sys.executable, "-P", "-m", "app.cli", *typed[1:], "-P", pool],
                name=name,
                cwd=load.JOBS.parent,
                env={name: words.get(value, value.replace("$DATA", str(tmp_path))) for name, value in pairs},
            )
        load.load_jobs(client)
    wanted = {
        ("forum", "post-score"): {"posts": 400},
        ("forum", "report"): {"service": "forum", "comments": 4000},
        ("media", "upload"): {"files": 12, "copied": 12},
        ("media", "compress"): {"files": 12},
        ("media", "report"): {"service": "media", "files": 12},
    }
    for job, result in wanted.items():
        run = api.post(f"/jobs/{_jobs(api)[job]['id']}/trigger", status=201)
        ended = _ended(api, run["id"])
        assert ended["state"] == "SUCCESS", ended
        assert result.items() <= ended["result"].items()
        assert ended["attempt"] == 1
