"""A wrong setting ends the process at start with one line that names it, and never shows a secret."""

import sys
from collections.abc import Callable

import pytest

from app import faults
from app.settings import Settings, SettingsError, UpSettings
from tests.processes import Process

GOOD = {
    "database_url": "postgresql+asyncpg://u:geheim@127.0.0.1/d",
    "redis_url": "redis://:geheim@127.0.0.1/0",
    "broker_url": "amqp://u:geheim@127.0.0.1//",
}


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"database_url": "postgresql://u:geheim@h/d"}, "JOBPLANE_DATABASE_URL: must begin with postgresql+asyncpg://"),
        ({"redis_url": "http://geheim"}, "JOBPLANE_REDIS_URL: must begin with redis:// or rediss://"),
        ({"broker_url": "sqs://geheim"}, "JOBPLANE_BROKER_URL: must begin with amqp:// or amqps:// or redis://"),
        ({"port": 65536}, "JOBPLANE_PORT: "),
        ({"port": "http"}, "JOBPLANE_PORT: "),
        ({"log_level": "loud"}, "JOBPLANE_LOG_LEVEL: "),
        ({"tick_batch": 0}, "JOBPLANE_TICK_BATCH: "),
        ({"faults": "tick.nowhere=kill"}, "JOBPLANE_FAULTS: no fault point 'tick.nowhere'"),
        ({"faults": "tick.after_commit=explode"}, "JOBPLANE_FAULTS: no fault action 'explode'"),
        ({"host": "0.0.0.0"}, "JOBPLANE_HOST: 0.0.0.0 can be reached by others"),
        ({"host": "example"}, "JOBPLANE_HOST: example can be reached by others"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(wrong: dict[str, object], line: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.load(**{**GOOD, **wrong})
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize("name", GOOD)
def test_a_missing_setting_is_named(name: str) -> None:
    with pytest.raises(SettingsError, match=f"JOBPLANE_{name.upper()}: is not set"):
        Settings.load(**{key: value for key, value in GOOD.items() if key != name})


def test_secrets_are_not_shown() -> None:
    assert "geheim" not in repr(Settings.load(**GOOD))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_loopback_needs_no_permission(host: str) -> None:
    assert UpSettings.load(host=host).host == host


def test_another_address_can_be_meant() -> None:
    assert UpSettings.load(host="0.0.0.0", allow_remote=True).host == "0.0.0.0"


@pytest.mark.parametrize("command", ["api", "scheduler", "migrate"])
def test_the_process_ends_with_that_line(start_process: Callable[..., Process], command: str) -> None:
    process = start_process([sys.executable, "-P", "-m", "app.cli", command], name=command)
    assert process.wait(30) == 2
    assert process.output().strip() == "jobplane: JOBPLANE_DATABASE_URL: is not set"


async def test_a_fault_acts_at_the_passing_it_names() -> None:
    faults.arm("tick.after_commit=raise*2")
    try:
        await faults.at("tick.after_commit")
        with pytest.raises(faults.InjectedFault):
            await faults.at("tick.after_commit")
        await faults.at("tick.after_commit")
        await faults.at("tick.before_commit")
    finally:
        faults.arm("")
