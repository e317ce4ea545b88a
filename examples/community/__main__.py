"""Starts all of it: `python -m examples.community [--port 8000] [--data-dir .jobplane/example] [--broker URL]`.

`jobplane up` first, then the two services with the addresses that it prints, then `jobs.yaml` is loaded. Ctrl-C ends
everything in order; the data stay in the folder.
"""

import argparse
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

import httpx

from app.embedded import dies_with_parent
from examples.community import load

HERE = Path(__file__).resolve().parent

#: Each service: the command, and the variables of its environment. `up` prints the URLs; {folder} is for its data.
SERVICES: Mapping[str, tuple[list[str], Mapping[str, str]]] = {
    "forum": (
        ["celery", "-A", "forum.make_celery", "worker", "-n", "forum@%h", "-l", "warning"],
        {
            "FORUM_CELERY__broker_url": "{broker}",
            "FORUM_CELERY__result_backend": "{redis}",
            "FORUM_DATABASE": "{folder}/forum.sqlite",
        },
    ),
    "media": (
        ["jobplane", "worker", "-Q", "media", "-n", "media@%h", "-c", "2", "-l", "warning"],
        {
            "JOBPLANE_WORKER_BROKER_URL": "{broker}",
            "JOBPLANE_WORKER_REDIS_URL": "{redis}",
            "JOBPLANE_WORKER_INCLUDE": "media.tasks",
            "JOBPLANE_WORKER_CONTEXT": "media.context:call_context",
            "MEDIA_FOLDER": "{folder}/media",
        },
    ),
}
#: A task of each service, by which the plane shows that it has seen the service.
SEEN = ("forum.tasks.post_score", "media.tasks.upload")
START_S = 90.0
STOP_S = 20.0


class Stopped(Exception):
    """Somebody wants us to end, or a part has ended."""


class Part:
    """A process of ours. Its lines are passed on behind its name."""

    def __init__(self, name: str, command: list[str], cwd: Path | None, environment: Mapping[str, str]) -> None:
        self.name = name
        self.lines: queue.Queue[str | None] = queue.Queue()
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C in the terminal is for us; we end the parts in order
            preexec_fn=dies_with_parent(signal.SIGTERM),
        )
        self._reader = threading.Thread(target=self._pass_on)
        self._reader.start()

    def _pass_on(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            print(f"{self.name:6}| {line}", end="", flush=True)
            self.lines.put(line)
        self.lines.put(None)

    def ended(self) -> bool:
        return self._process.poll() is not None

    def ask_to_stop(self) -> None:
        if not self.ended():
            self._process.terminate()

    def stop(self) -> None:
        """Wait for its end; what does not end in time is killed."""
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._reader.join()


class Site:
    """The plane and the services."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._parts: list[Part] = []

    def ask_to_stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._stop.set()

    def run(self, options: argparse.Namespace) -> None:
        """Until somebody wants it to end (then nothing) or a part ends (then Stopped)."""
        try:
            self._start(options)
            while not self._stop.wait(0.2):
                self._check()
        finally:
            # The plane last, for the services' last words go to it.
            for parts in (self._parts[1:], self._parts[:1]):
                for part in parts:
                    part.ask_to_stop()
                for part in parts:
                    part.stop()

    def _start(self, options: argparse.Namespace) -> None:
        folder = options.data_dir.absolute()
        arguments = ["up", "--port", str(options.port), "--data-dir", str(folder)]
        arguments += ["--broker", options.broker] if options.broker else []
        plane = Part("plane", _program(["jobplane", *arguments]), None, {})
        self._parts.append(plane)
        printed = self._addresses(plane)
        for name, (command, variables) in SERVICES.items():
            filled = {key: value.format(folder=folder, **printed) for key, value in variables.items()}
            self._parts.append(Part(name, _program(command), HERE, filled))
        with load.client(printed["url"]) as api:
            load.load_queues(api)
            self._await_services(api)
            load.load_jobs(api)
        print(f"\nthe community site is up: {printed['url']}/docs\nCtrl-C ends all of it; the data stays.", flush=True)

    def _addresses(self, plane: Part) -> dict[str, str]:
        """What `jobplane up` prints once it is there."""
        words = {"API and docs": "url", "Redis": "redis", "broker": "broker"}
        found: dict[str, str] = {}
        while len(found) < len(words):
            self._check()
            try:
                line = plane.lines.get(timeout=0.2) or ""
            except queue.Empty:
                continue
            for word, name in words.items():
                if line.startswith(f"  {word} "):
                    found[name] = line.removeprefix(f"  {word}").strip().removesuffix("/docs")
        return found

    def _await_services(self, api: httpx.Client) -> None:
        """Until the plane has seen both services: a job that is loaded before is warned of."""
        deadline = time.monotonic() + START_S
        while not set(SEEN) <= {task["name"] for task in api.get("/tasks", params={"limit": 200}).json()["items"]}:
            self._check()
            if time.monotonic() > deadline:
                raise Stopped(f"the plane did not see {' and '.join(SEEN)} in {START_S:.0f} s")
            self._stop.wait(0.2)

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped
        for part in self._parts:
            if part.ended():
                raise Stopped(f"{part.name} has ended")


def _program(command: list[str]) -> list[str]:
    """The command with the programs of this environment."""
    modules = {"jobplane": "app.cli", "celery": "celery"}
    return [sys.executable, "-P", "-m", modules[command[0]], *command[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.community")
    parser.add_argument("--port", type=int, default=8000, help="of the API; 0 takes a free one")
    parser.add_argument("--data-dir", type=Path, default=Path(".jobplane/example"), help="data of plane and services")
    parser.add_argument("--broker", help="a broker instead of the embedded Valkey")
    site = Site()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, site.ask_to_stop)
    try:
        site.run(parser.parse_args())
    except Stopped as why:
        if why.args:
            sys.exit(f"stopped: {why}")
    except (load.Refused, httpx.HTTPError) as error:
        sys.exit(f"stopped: {error}")


if __name__ == "__main__":
    main()
