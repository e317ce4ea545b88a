"""What a team gets by `workers.app`, with nothing but settings."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.embedded import Valkey
from tests.processes import Process, wait_until
from tests.workers.conftest import ROOT, shared_redis_url, worker_process
from tests.workers.plane import Plane
from workers.health import PATIENCE_S, Status, born, trouble

TEAM = {"autodiscover": "tests.workers.team", "max_tasks_per_child": "3"}


@pytest.fixture(scope="module")
def team(valkey_server: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Plane]]:
    """A worker of a team, prefork, one child. It says how it fares beside its output, where no other worker does."""
    url = shared_redis_url(valkey_server)
    path = tmp_path_factory.mktemp("team") / "worker.log"
    with (
        worker_process(path, url, url, "-c", "1", settings=TEAM, env={"TMPDIR": str(path.parent)}) as process,
        Plane(url, url) as plane,
    ):
        yield process, plane
        print(process.output()[-6000:])


def test_shared_tasks_of_a_package_are_found_and_run_in_our_app(team: tuple[Process, Plane]) -> None:
    _, plane = team
    told = plane.wait_for(plane.send("tests.workers.team.tasks.whose", queue="work"), "SUCCESS")["result"]
    assert told["main"] == "jobplane"
    assert told["late"] is True


def test_they_report_without_knowing_of_us(team: tuple[Process, Plane]) -> None:
    _, plane = team
    task_id = plane.send("tests.workers.team.tasks.halfway", queue="work")
    plane.wait_for(task_id, "SUCCESS")
    assert plane.states(task_id) == ["STARTED", "PROGRESS", "SUCCESS"]


def test_the_result_of_a_message_that_is_not_the_planes_is_celerys_matter(team: tuple[Process, Plane]) -> None:
    _, plane = team
    foreign = plane.celery.send_task("tests.workers.team.tasks.not_a_number", queue="work").id
    wait_until(lambda: (plane.stored(foreign) or {}).get("status") == "SUCCESS", 30, "it is stored")
    ours = plane.send("tests.workers.team.tasks.not_a_number", queue="work")
    assert plane.wait_for(ours, "FAILURE")["result"]["exc_type"] == "ResultNotJson"


def test_children_are_replaced(team: tuple[Process, Plane]) -> None:
    _, plane = team
    sent = [plane.send("tests.workers.team.tasks.whose", queue="work") for _ in range(4)]
    pids = {plane.wait_for(task_id, "SUCCESS")["result"]["pid"] for task_id in sent}
    assert len(pids) >= 2


def test_a_worker_that_consumes_is_sound(team: tuple[Process, Plane]) -> None:
    process, _ = team

    def sound() -> bool:
        return health(TMPDIR=str(process.output_path.parent)) == (0, "w@test: sound\n")

    wait_until(sound, 30, "it says so")
    assert process.poll() is None


def health(*options: str, **env: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "worker-health", *options],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_no_worker_is_not_sound(tmp_path: Path) -> None:
    assert health(TMPDIR=str(tmp_path)) == (1, "no worker runs here\n")


def leave(folder: Path, status: Status) -> Path:
    """The file of a worker."""
    file = folder / f"jobplane-worker-{os.getuid()}-{status.pid}.json"
    file.write_text(json.dumps({name: getattr(status, name) for name in Status.__slots__}))
    return file


def test_a_killed_worker_whose_number_another_process_has_is_forgotten(tmp_path: Path) -> None:
    file = leave(tmp_path, Status(os.getpid(), "1", "w@here", 0.0, [], 0.0, 0, 0.0))
    assert health(TMPDIR=str(tmp_path)) == (1, "no worker runs here\n")
    assert not file.exists()


def test_a_worker_that_waits_for_its_broker_lives(tmp_path: Path, redis_url: str) -> None:
    status = Status(os.getpid(), born(os.getpid()), "w@here", 0.0, [], 0.0, 0, 0.0)
    leave(tmp_path, status)
    here = {"TMPDIR": str(tmp_path), "JOBPLANE_WORKER_REDIS_URL": redis_url}
    code, said = health("--live", JOBPLANE_WORKER_BROKER_URL="amqp://127.0.0.1:1", **here)
    assert (code, said.partition(":")[0]) == (0, "the broker cannot be reached")
    assert health("--live", JOBPLANE_WORKER_BROKER_URL=redis_url, **here)[0] == 1
    assert health(JOBPLANE_WORKER_BROKER_URL="amqp://127.0.0.1:1", **here)[0] == 1


@pytest.mark.parametrize(
    ("at", "hungry_since", "active", "turned", "said"),
    [
        (99, None, 0, 99, None),
        (99, None, 1, 10, None),
        (99, 98, 0, 10, None),
        (99, None, 0, 10, "its event loop stands still for 90 s"),
        (99, 20, 0, 99, "consumes nothing for 80 s"),
        (99, 20, 1, 99, "consumes nothing for 80 s"),
        (100 - PATIENCE_S - 1, None, 1, 99, "has not said anything for 61 s"),
    ],
)
def test_what_is_trouble(at: float, hungry_since: float | None, active: int, turned: float, said: str | None) -> None:
    status = Status(1, "", "w@here", at, ["a"], hungry_since, active, turned)
    assert trouble(status, 100.0) == (f"w@here: {said}" if said else None)


def eager(text: str, **settings: str) -> Any:
    """What a program prints as JSON whose worker settings are these alone."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("JOBPLANE_")}
    env |= {f"JOBPLANE_WORKER_{name.upper()}": value for name, value in settings.items()}
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("servers", [{}, {"broker_url": "amqp://localhost:1//", "redis_url": "redis://localhost:1/0"}])
def test_a_teams_own_tests_need_no_server(servers: dict[str, str]) -> None:
    text = """
import json
from workers.app import app
app.loader.import_default_modules()
from tests.workers.team.tasks import halfway, whose
told = halfway.delay()
print(json.dumps([told.get(), told.state, whose.delay().get()["main"]]))
"""
    assert eager(text, eager="true", autodiscover="tests.workers.team", **servers) == [2, "SUCCESS", "jobplane"]


def test_what_is_given_to_the_factory_wins() -> None:
    text = """
import json
from workers.app import make_app
app = make_app(
    include=["tests.workers.sample_tasks"], worker_prefetch_multiplier=4, context="tests.workers.team:wrapped"
)
print(json.dumps([app.conf.worker_prefetch_multiplier, app.conf.task_acks_late, app.conf.jobplane_context,
                  "tests.workers.sample_tasks" in app.conf.include]))
"""
    assert eager(text, eager="true") == [4, True, "tests.workers.team:wrapped", True]


@pytest.mark.parametrize("name", ["include", "autodiscover"])
def test_a_module_that_is_not_there_is_named(name: str) -> None:
    env = {**os.environ, "JOBPLANE_WORKER_EAGER": "true", f"JOBPLANE_WORKER_{name.upper()}": "nowhere.to.be"}
    done = subprocess.run(
        [sys.executable, "-c", "import workers.app as a; a.app"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == f"jobplane: JOBPLANE_WORKER_{name.upper()}: no module 'nowhere.to.be' on this worker's path\n"
