"""Logs of real workers, from the body over Redis and the store to whoever reads."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from tests.acceptance.plane import Api, Plane
from tests.processes import wait_until
from workers.protocol import LOGS_KEY

pytestmark = pytest.mark.acceptance


class Rig:
    """A plane with a store in a folder of the test's own, and one worker."""

    def __init__(self, plane: Plane, folder: Path) -> None:
        self.folder = folder
        plane.settings = {"JOBPLANE_LOG_STORE": folder.as_uri()}
        self.plane = plane
        self.api: Api = plane.api()
        self.scheduler = plane.scheduler()
        self.api.await_queue("default")
        plane.worker(options=("-c", "8"), JOBPLANE_WORKER_INCLUDE="tests.acceptance.log_bodies")

    def run(self, task: str, **kwargs: Any) -> str:
        retry = {"max_lost": 0}
        asked = {"task": task, "queue": "default", "kwargs": kwargs, "retry": retry}
        return str(self.api.post("/runs", asked, 201)["id"])

    def ended(self, run_id: str, timeout: float = 60) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = self.api.get(f"/runs/{run_id}", wait=5, until="end")
            return found if found["end_time"] else None

        return wait_until(look, timeout, f"the end of {run_id}") or {}

    def log(self, run_id: str, offset: int = 0, **params: Any) -> tuple[str, int, bool]:
        answer = httpx.get(f"{self.api.v1}/runs/{run_id}/logs", params={"offset": offset, **params}, timeout=60)
        assert answer.status_code == 200, answer.text
        return (
            answer.content.decode(),
            int(answer.headers["Jobplane-Log-Next"]),
            answer.headers["Jobplane-Log-Ended"] == "true",
        )

    def followed(self, run_id: str, timeout: float = 90) -> str:
        """The whole log, read as it grows until it has ended."""
        text, offset, until = "", 0, time.monotonic() + timeout
        while time.monotonic() < until:
            more, offset, ended = self.log(run_id, offset, wait=10)
            text += more
            if ended:
                return text
        raise AssertionError(f"the log of {run_id} does not end: {text[-500:]}")

    def sealed(self, run_id: str) -> Path:
        """The file of a log that is all in the store."""
        run = self.api.get(f"/runs/{run_id}")
        path = Path(run["log_path"].removeprefix("file://"))
        assert path.is_relative_to(self.folder)
        member = f"{run_id}:{run['attempt']}"
        with Redis.from_url(self.plane.redis_url) as client:
            wait_until(lambda: client.zscore(LOGS_KEY, member) is None, 60, f"{member} is sealed to its end")
        return path

    @contextmanager
    def store_away(self) -> Iterator[None]:
        aside = self.folder.with_name("aside")
        self.folder.rename(aside)
        self.folder.write_text("in the way")
        try:
            yield
        finally:
            self.folder.unlink()
            aside.rename(self.folder)


@pytest.fixture
def rig(plane: Plane, tmp_path: Path) -> Rig:
    folder = tmp_path / "store"
    folder.mkdir()
    return Rig(plane, folder)


def numbers(text: str, mark: str = "") -> list[int]:
    return [int(number) for number in re.findall(rf"{mark} ?line (\d+)$", text, re.MULTILINE)]


@pytest.mark.long
def test_what_bodies_say_is_read_live_late_and_after_a_kill(rig: Rig) -> None:
    killed = rig.run("log.killed", lines=50)
    with rig.store_away():
        # Nothing of it is in the store yet, and so it can be read without the store.
        counted = rig.run("log.count", lines=400, per_second=200, mark="a")
        assert rig.log(counted, wait=30)[0], "it is read while the body is at work"
        rig.scheduler.wait_for_line("pass_failed", 30)
        text = rig.followed(counted)
    assert rig.ended(counted)["state"] == "SUCCESS"
    assert numbers(text, "a") == list(range(400))
    sealed = rig.sealed(counted)
    assert sealed.read_text() == text == rig.followed(counted), "who comes late has it from the first line"
    assert rig.ended(killed)["error"]["type"] == "WorkerLost"
    assert numbers(rig.followed(killed)) == list(range(50))
    assert numbers(rig.sealed(killed).read_text()) == list(range(50))


@pytest.mark.long
@pytest.mark.timeout(400)
def test_much_and_odd_logs_and_a_store_that_is_away_for_half_a_minute(rig: Rig) -> None:
    flood = rig.run("log.flood", mib=100)
    found = rig.ended(flood, 180)
    assert found["state"] == "SUCCESS", found
    print(f"100 MiB took {found['result']} s")
    live, body = rig.followed(flood), rig.sealed(flood).read_text()
    assert rig.followed(flood) == body
    cut = re.search(r"^\[jobplane: (\d+) bytes cut here\]\n", body, re.MULTILINE)
    assert cut is not None
    _, end, ended = rig.log(flood, 2**40)
    head, tail = body[: cut.start()], body[cut.end() :]
    assert rig.log(flood, len(head) + int(cut[1]))[1:] == (len(head) + int(cut[1]) + len(tail), True)
    assert (end, ended) == (2**40, True)
    assert 2**20 <= len(head) < 2**20 + 300
    assert 65536 - 300 < len(tail) <= 65536
    for text in (live, body):
        lines = [int(line.split()[-1]) for line in text.splitlines() if not line.startswith("[")]
        assert (lines == sorted(set(lines)), lines[0], lines[-1]) == (True, 0, 100 * 8192 - 1)

    rubbish = rig.run("log.rubbish")
    assert rig.ended(rubbish)["state"] == "SUCCESS"
    said = rig.followed(rubbish)
    assert [line.partition(" ")[2] for line in said.splitlines()[-2:]] == ["<script>alert(1)</script>", "no end"]

    with rig.store_away():
        begin = time.monotonic()
        counts = [rig.run("log.count", lines=10_000, per_second=1000, mark=f"t{n}") for n in range(8)]
        with ThreadPoolExecutor(8) as readers:
            texts = list(readers.map(lambda run_id: rig.followed(run_id, 150), counts))
        time.sleep(max(0, begin + 30 - time.monotonic()))
    for n, (run_id, read) in enumerate(zip(counts, texts, strict=True)):
        assert rig.ended(run_id)["state"] == "SUCCESS"
        assert numbers(read, f"t{n}") == list(range(10_000))
        assert rig.sealed(run_id).read_text() == read
