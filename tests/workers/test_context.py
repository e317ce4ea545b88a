"""The context of a worker: what may be one, and eager calls, which are as in a worker."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from flask import Flask, current_app

from tests.workers import runtime_tasks
from tests.workers.plane import lines
from workers.context import ContextError, load
from workers.task import Task

ROOT = Path(__file__).parents[2]
MODULE = "tests.workers.runtime_tasks"


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Celery]:
    url = f"file://{tmp_path}"
    app = Celery("test", broker="memory://", backend=url, task_cls=Task, set_as_current=False)
    app.conf.update(task_always_eager=True, task_store_eager_result=True, jobplane_context=f"{MODULE}:context")
    yield app
    app.close()


def anything(one: object, two: object) -> None: ...
def only_by_name(*, task: object) -> None: ...
def with_defaults(url: str = "x") -> str:
    return url


def with_task(url: str = "x", task: object = None) -> None: ...


@pytest.mark.parametrize(
    ("setting", "takes_task"),
    [
        (f"{MODULE}:opened", True),
        (f"{MODULE}:session.get", True),
        (contextlib.nullcontext, False),
        (with_defaults, False),
        (with_task, True),
        (Flask("x").app_context, False),
    ],
)
def test_factories(setting: Any, takes_task: bool) -> None:
    factory = load(setting)
    assert factory is not None
    assert factory.takes_task is takes_task


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("nocolon", "must be package.module:factory, not 'nocolon'"),
        ("no.such:thing", "no.such:thing: ModuleNotFoundError: No module named 'no'"),
        (f"{MODULE}:missing", f"{MODULE}:missing: AttributeError: "),
        (f"{MODULE}:__name__", f"{MODULE}:__name__ cannot be called"),
        (anything, "tests.workers.test_context:anything must take the task, or nothing"),
        (only_by_name, "tests.workers.test_context:only_by_name must take the task, or nothing"),
    ],
)
def test_what_is_no_factory(setting: Any, message: str) -> None:
    with pytest.raises(ContextError) as caught:
        load(setting)
    assert str(caught.value).startswith(f"JOBPLANE_WORKER_CONTEXT: {message}")
    assert "\n" not in str(caught.value)


def test_no_factory_at_all() -> None:
    assert load(None) is load("") is None


def test_worker_with_a_wrong_context_ends_with_one_line() -> None:
    env = {
        "JOBPLANE_WORKER_BROKER_URL": "redis://localhost:1/0",
        "JOBPLANE_WORKER_REDIS_URL": "redis://localhost:1/0",
        "JOBPLANE_WORKER_CONTEXT": "no.such:thing",
    }
    command = [sys.executable, "-m", "celery", "-A", "workers.app", "worker", "-P", "solo"]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if "jobplane" in line] == [
        "jobplane: JOBPLANE_WORKER_CONTEXT: no.such:thing: ModuleNotFoundError: No module named 'no'"
    ]


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("body", [runtime_tasks.plain_body, runtime_tasks.coroutine_body])
def test_eager_call_is_in_the_context(app: Celery, tmp_path: Path, body: Any, kind: str) -> None:
    task = app.task(body, name="eager", bind=True, shared=False)
    path = tmp_path / "witness"
    assert task.apply((str(path), "", kind), task_id="a").get() == ["session of a", "a"]
    assert lines(path) == ["entered eager", "left None"]
    with pytest.raises(ContextError, match="could not be entered: LookupError: no database"):
        task.apply((str(path), "enter fails", kind)).get()
    with pytest.raises(ContextError, match="could not be left: LookupError: no commit"):
        task.apply((str(path), "exit fails", kind)).get()
    with pytest.raises(ValueError, match=r"^broken$"):
        task.apply((str(path), "body fails", kind)).get()
    assert lines(path)[-1] == "left ValueError"


def test_eager_progress_is_stored_and_looked_at(app: Celery) -> None:
    app.conf.jobplane_context = None

    @app.task(bind=True, shared=False)
    def body(self: Task, bad: bool = False) -> Any:
        self.progress(1, 2, what=object() if bad else "x")
        return self.backend.get_task_meta(self.request.id, cache=False)["result"]

    assert body.delay().get() == {"current": 1, "total": 2, "what": "x"}
    with pytest.raises(Exception, match="object is not JSON serializable"):
        body.delay(bad=True).get()


def test_coroutine_calls_another_eagerly(app: Celery) -> None:
    app.conf.jobplane_context = None

    @app.task
    async def inner() -> str:
        return "inner"

    @app.task(bind=True, shared=False)
    async def outer(self: Task) -> list[str]:
        return [inner.delay().get(disable_sync_subtasks=False), str(self.request.id), await inner()]

    assert outer.apply(task_id="a").get() == ["inner", "a", "inner"]


def test_flask_app_context(app: Celery) -> None:
    flask = Flask("shop")
    app.conf.jobplane_context = flask.app_context

    @app.task
    def name() -> str:
        return current_app.name

    @app.task
    async def name_later() -> str:
        return current_app.name

    assert name.delay().get() == name_later.delay().get() == "shop"


def test_context_that_keeps_an_exception(app: Celery) -> None:
    app.conf.jobplane_context = lambda: contextlib.suppress(KeyError)

    @app.task
    def lost(kind: type[Exception]) -> None:
        raise kind

    assert lost.apply((KeyError,)).get() is None
    with pytest.raises(ValueError):
        lost.apply((ValueError,)).get()
    app.conf.jobplane_context = lambda: "no context manager"
    with pytest.raises(ContextError, match="returned str, which is no context manager"):
        lost.apply((ValueError,)).get()
