"""A worker's settings are read once, and a wrong one is told in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers.settings import Settings, SettingsError

GOOD = {"broker_url": "amqp://guest@localhost//", "redis_url": "redis://localhost/0"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("broker_url", "http://x", "JOBPLANE_WORKER_BROKER_URL: must begin with amqp:// or amqps:// or redis://"),
        ("redis_url", "amqp://x", "JOBPLANE_WORKER_REDIS_URL: must begin with redis:// or rediss://"),
        ("concurrency", "0", "JOBPLANE_WORKER_CONCURRENCY: Input should be greater than or equal to 1"),
        ("queues", " , ", "JOBPLANE_WORKER_QUEUES: "),
        ("log_level", "LOUD", "JOBPLANE_WORKER_LOG_LEVEL: Input should be 'DEBUG', 'INFO'"),
        ("log_masks", "ok,[a", "JOBPLANE_WORKER_LOG_MASKS: not a regular expression: '[a'"),
        ("files_root", "/no/such/folder", "JOBPLANE_WORKER_FILES_ROOT: must be a folder that exists"),
    ],
)
def test_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    for key, text in (GOOD | {name: value}).items():
        monkeypatch.setenv(f"JOBPLANE_WORKER_{key.upper()}", text)
    with pytest.raises(SettingsError) as caught:
        Settings.load()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_names_are_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, text in (GOOD | {"include": "a.b, c", "queues": "x,y ,z"}).items():
        monkeypatch.setenv(f"JOBPLANE_WORKER_{key.upper()}", text)
    settings = Settings.load()
    assert settings.include == ("a.b", "c")
    assert settings.queues == ("x", "y", "z")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "JOBPLANE_WORKER_BROKER_URL: is not set"),
        (
            GOOD | {"include": "no_such.tasks"},
            "JOBPLANE_WORKER_INCLUDE: no module 'no_such.tasks' on this worker's path",
        ),
    ],
)
def test_wrong_setting_ends_the_worker_in_one_line(given: dict[str, str], message: str) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith("JOBPLANE_")}
    env |= {f"JOBPLANE_WORKER_{key.upper()}": value for key, value in given.items()}
    command = [sys.executable, "-m", "celery", "-A", "workers.app", "worker"]
    done = subprocess.run(
        command, env=env, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr.strip() == f"jobplane: {message}"


def test_plane_loads_the_protocol_without_celery() -> None:
    code = "import sys, workers.protocol; sys.exit('celery' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0
