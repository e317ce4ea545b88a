"""`jobplane up`: the whole plane on the embedded servers, as a person starts it."""

import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.acceptance.following import follow_a_job_each_second
from tests.acceptance.plane import HERE, JOBPLANE, Api
from tests.processes import Process, wait_until

pytestmark = pytest.mark.acceptance


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A data folder; what root's PostgreSQL keeps elsewhere for it goes with it."""
    data = tmp_path / "data"
    yield data
    location = data / "postgres.location"
    if location.exists():
        place = Path(location.read_text().strip())
        shutil.rmtree(place, ignore_errors=True)
        place.with_name(place.name + ".lock").unlink(missing_ok=True)


@pytest.fixture
def up(start_process: Callable[..., Process], folder: Path) -> Callable[..., tuple[Process, Api]]:
    def start(*options: str) -> tuple[Process, Api]:
        process = start_process(
            [*JOBPLANE, "up", "--port", "0", "--data-dir", folder, *options],
            name="up",
            env={"JOBPLANE_WORKER_INCLUDE": "tests.acceptance.bodies"},
            cwd=HERE.parent.parent,
        )
        process.wait_for_line("jobplane is up", 60)
        line = process.wait_for_line("API and docs")
        found = re.search(r"http://\S+:\d+", line)
        assert found
        return process, Api(found[0])

    return start


def tree(process: Process) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def left(processes: list[psutil.Process]) -> list[str]:
    """What is still there of these."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
    return found


def test_twenty_seconds_twenty_runs_followed_by_socket_and_by_polling(
    up: Callable[..., tuple[Process, Api]], tmp_path: Path
) -> None:
    _, api = up()
    follow_a_job_each_second(api, 20, tmp_path)


def test_a_second_start_is_refused_while_the_first_runs_and_finds_its_data_after(
    up: Callable[..., tuple[Process, Api]], start_process: Callable[..., Process], folder: Path
) -> None:
    process, api = up()
    job = api.job("kept", "test.add", 3600, args=[1, 2])
    second = start_process([*JOBPLANE, "up", "--port", "0", "--data-dir", folder], name="second")
    assert second.wait(40) == 2
    assert second.output().strip() == f"jobplane: jobplane is already running in {folder}"
    children = tree(process)
    assert len(children) >= 5
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert left(children) == []
    _, api = up()
    assert api.get(f"/jobs/{job['id']}")["name"] == "kept"


@pytest.mark.long
def test_a_part_that_dies_is_started_again_and_said_so(up: Callable[..., tuple[Process, Api]]) -> None:
    process, api = up()
    victims = {
        "postgres": lambda child: child.name() == "postgres",
        "valkey": lambda child: "valkey" in child.name(),
        "scheduler": lambda child: "scheduler" in child.cmdline(),
        "worker": lambda child: "celery" in child.cmdline(),
        "api": lambda child: "api" in child.cmdline(),
    }
    for name, fits in victims.items():
        children = psutil.Process(process.pid).children()
        next(child for child in children if fits(child)).kill()
        process.wait_for_line(f"{name} ended (SIGKILL) and is started again", 20)
        wait_until(api.ready, 40, f"ready again after {name} was killed")
        run = api.post("/runs", {"task": "test.add", "args": [1, 2]}, 201)
        ended = wait_until(
            lambda run=run: (found := api.get(f"/runs/{run['id']}"))["end_time"] and found, 60, f"a run after {name}"
        )
        assert ended["result"] == 3


def test_killing_it_leaves_no_process(up: Callable[..., tuple[Process, Api]]) -> None:
    process, _ = up()
    children = tree(process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    try:
        wait_until(lambda: not left(children), 30, "every process is gone")
    finally:
        print(left(children))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--host", "0.0.0.0"], "JOBPLANE_HOST: 0.0.0.0 can be reached by others"),
        (["--broker", "http://x"], "JOBPLANE_BROKER_URL: must begin with amqp://"),
        (["--port", "99999"], "JOBPLANE_PORT: Input should be less than or equal to 65535"),
    ],
)
def test_a_wrong_setting_ends_it_with_one_line(
    start_process: Callable[..., Process], folder: Path, options: list[str], line: str
) -> None:
    process = start_process([*JOBPLANE, "up", "--data-dir", folder, *options], name="up")
    assert process.wait(40) == 2
    assert process.output().startswith(f"jobplane: {line}")
    assert len(process.output().strip().splitlines()) == 1


def test_a_folder_named_workers_is_told(start_process: Callable[..., Process], tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir()
    process = start_process([sys.executable, "-P", "-m", "app.cli", "worker", "-Q", "a"], name="worker", cwd=tmp_path)
    assert process.wait(40) == 2
    assert "hides jobplane's package of that name" in process.output()
