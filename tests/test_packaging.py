"""What the Dockerfile does, done without Docker: its own commands, run here, and the roles started from the result.

The stage `tools` is left out, for the environment of the tests holds the same tools out of the same lock.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from app.cli import cli
from app.embedded import free_port
from app.settings import Settings
from tests.processes import Process, wait_until
from workers.settings import Settings as WorkerSettings

ROOT = Path(__file__).parent.parent

#: An ordinary user to run the roles as where we are root ourselves.
NOBODY = 65534

SERVERS = {"postgres", "valkey", "rabbitmq"}


@dataclass(frozen=True, slots=True)
class Stage:
    """One `FROM` of the Dockerfile, and its instructions in order as (word, rest of the line)."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def of(self, word: str) -> list[str]:
        return [rest for name, rest in self.instructions if name == word]


def stages() -> dict[str, Stage]:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, Stage] = {}
    last: Stage | None = None
    for line in filter(None, (line.strip() for line in text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            last = found[name] = Stage(base)
        elif last is not None:
            last.instructions.append((word, rest.strip()))
    return found


def environment(stage: Stage) -> dict[str, str]:
    return dict(pair.split("=", 1) for rest in stage.of("ENV") for pair in shlex.split(rest))


def commands() -> set[str]:
    """The subcommands of `jobplane`."""
    return {command.name or command.callback.__name__ for command in cli.registered_commands if command.callback}


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / name).read_text(), flags=re.MULTILINE))


def test_the_image_takes_commands_as_they_are_and_runs_as_an_ordinary_user() -> None:
    made = stages()
    for stage in made.values():
        assert stage.base == "python:${PYTHON}" or stage.base in made
        for word in ("RUN", "CMD", "ENTRYPOINT"):
            assert all(isinstance(json.loads(rest), list) for rest in stage.of(word)), "no shell forms"
    runtime = made["runtime"]
    (user,) = runtime.of("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "a number, so that an orchestrator sees that it is not root"
    assert runtime.of("STOPSIGNAL") == ["SIGTERM"]
    assert json.loads(runtime.of("ENTRYPOINT")[0]) == ["jobplane"]
    assert not [name for name in environment(runtime) if name.startswith("JOBPLANE_")], "an image holds no settings"


def test_what_the_image_copies_is_there_and_let_in() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for stage in stages().values()
        for rest in stage.of("COPY")
        if not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert copied == let_in
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-build.txt"])
def test_what_the_image_installs_is_what_the_tests_ran_with(name: str) -> None:
    assert pins(name)
    assert pins(name).items() <= pins("requirements-dev.txt").items()


def test_the_containers_are_told_what_exists() -> None:
    services: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert services.keys() == SERVERS | {"migrate", "api", "scheduler", "worker"}
    plane = {f"JOBPLANE_{name.upper()}" for name in Settings.model_fields}
    worker = {f"JOBPLANE_WORKER_{name.upper()}" for name in WorkerSettings.model_fields}
    for name in services.keys() - SERVERS:
        service = services[name]
        assert service["command"][0] == name
        assert name in commands()
        assert service["environment"].keys() <= (worker if name == "worker" else plane)
        assert service["read_only"] is True
    assert services["scheduler"]["deploy"]["replicas"] == 2
    store = urlsplit(Settings.model_fields["log_store"].default).path
    assert services["api"]["volumes"] == services["scheduler"]["volumes"] == [f"store:{store}"]
    assert [store] == [json.loads(rest)[-1] for rest in stages()["runtime"].of("RUN")]
    assert not plane & services["worker"]["environment"].keys(), "a worker knows nothing of the database"
    assert all(port.startswith("127.0.0.1:") for port in services["api"]["ports"]), "there are no API keys yet"
    for service in services.values():
        for other, wait in service.get("depends_on", {}).items():
            ends = services[other]["restart"] == "no"
            assert wait["condition"] == ("service_completed_successfully" if ends else "service_healthy")
            assert ends or "healthcheck" in services[other]


def test_the_passwords_of_the_containers_come_from_outside() -> None:
    text = (ROOT / "compose.yaml").read_text()
    example = dict(line.split("=", 1) for line in (ROOT / ".env.example").read_text().splitlines() if "=" in line)
    asked = re.findall(r"\$\{(\w+)(:\?[^}]+)?\}", text)
    assert {name for name, _ in asked} == example.keys()
    assert all(required for _, required in asked)
    assert not any(example.values())
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


@dataclass(frozen=True, slots=True)
class Installed:
    """What the image holds at `/opt/jobplane`, and how a role is started from it."""

    home: Path
    user: int | None
    environment: dict[str, str]

    @property
    def command(self) -> Path:
        return self.home / "opt" / "bin" / "jobplane"


@pytest.fixture(scope="module")
def installed() -> Iterator[Installed]:
    home = Path(tempfile.mkdtemp(prefix="jobplane-image-"))
    home.chmod(0o755)
    try:
        user = NOBODY if os.getuid() == 0 else None
        python, extra = _interpreter(home, user)
        (home / "build").mkdir()
        (home / "srv").mkdir()
        made = stages()
        for name in ("wheel", "environment"):
            for word, rest in made[name].instructions:
                if word == "COPY" and not rest.startswith("--from"):
                    _copy(rest, home / "build")
                elif word == "RUN":
                    _run(json.loads(rest), home, python, extra)
        given = environment(made["runtime"])
        yield Installed(home, user, {**extra, **{key: given[key] for key in given if key != "PATH"}})
    finally:
        shutil.rmtree(home)


def _copy(rest: str, build: Path) -> None:
    *sources, target = rest.split()
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, build / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, build / target)


def _run(argv: list[str], home: Path, python: Path, extra: dict[str, str]) -> None:
    tools = Path(sys.executable).parent
    program = {"uv": tools / "uv", "python": python if argv[1:3] == ["-m", "venv"] else tools / "python"}[argv[0]]
    places = {"/opt/jobplane": str(home / "opt"), "/build": str(home / "build")}
    rest = [re.sub(r"^(/opt/jobplane|/build)(?=/|$)", lambda place: places[place[0]], part) for part in argv[1:]]
    done = subprocess.run(
        [program, *rest], cwd=home / "build", env={**os.environ, **extra}, umask=0o022, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"


def _interpreter(home: Path, user: int | None) -> tuple[Path, dict[str, str]]:
    """The Python below our environment; a copy if it lies where the other user may not read, and what that needs."""
    base = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    if user is None:
        return base, {}
    try:
        subprocess.run([base, "-c", ""], user=user, group=user, extra_groups=[], cwd="/", check=True)
    except (OSError, subprocess.CalledProcessError):
        prefix, copy = Path(sys.base_prefix), home / "python"
        leave = shutil.ignore_patterns("site-packages", "test", "__pycache__", "*.a", "include", "share")
        shutil.copytree(prefix, copy, symlinks=True, ignore=leave)
        return copy / base.relative_to(prefix), {"LD_LIBRARY_PATH": str(copy / "lib")}
    return base, {}


def _sha256(folder: Path) -> str:
    """What `files.digest` promises: the digest of `sha256sum`'s list, in the order of the names' bytes."""
    names = sorted(os.fsencode(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    lines = [b"%s  %s\n" % (_hex(folder / os.fsdecode(name)), name) for name in names]
    return hashlib.sha256(b"".join(lines)).hexdigest()


def _hex(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).hexdigest().encode()


def test_the_installed_wheel_migrates_runs_all_roles_and_stops(
    installed: Installed, empty_database_url: str, redis_url: str, start_process: Callable[..., Process]
) -> None:
    port = free_port()
    plane = {
        "JOBPLANE_DATABASE_URL": empty_database_url,
        "JOBPLANE_REDIS_URL": redis_url,
        "JOBPLANE_BROKER_URL": redis_url,
        "JOBPLANE_PORT": str(port),
    }
    worker = {"JOBPLANE_WORKER_REDIS_URL": redis_url, "JOBPLANE_WORKER_BROKER_URL": redis_url}

    def start(*arguments: str, settings: dict[str, str]) -> Process:
        return start_process(
            [installed.command, *arguments],
            name=arguments[0],
            env={**installed.environment, **settings},
            cwd=installed.home / "srv",
            user=installed.user,
        )

    assert start("migrate", settings=plane).wait() == 0
    assert start("migrate", settings=plane).wait() == 0, "a second time is no mistake"
    roles = [
        start("api", settings=plane),
        start("scheduler", settings=plane),
        start("worker", "--queues", "default", "--concurrency", "1", settings=worker),
    ]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=40) as client:
        wait_until(lambda: _ready(client), 60, "the plane is ready")
        if installed.user is not None:
            assert {Path(f"/proc/{role.pid}").stat().st_uid for role in roles} == {installed.user}
        folder = next(installed.home.glob("opt/lib/python*/site-packages/app"))
        asked = {"task": "files.digest", "kwargs": {"path": str(folder)}, "queue": "default"}
        made = client.post("/api/v1/runs", json=asked)
        assert made.status_code == 201, made.text

        def ended() -> Any:
            run = client.get(made.headers["Location"], params={"wait": 30, "until": "end"}).json()
            return run if run["end_time"] else None

        run = wait_until(ended, 60, "the end of the run")
        assert run["state"] == "SUCCESS", run
        assert run["result"]["sha256"] == _sha256(folder)
    for role in reversed(roles):
        assert role.stop() == 0


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False
