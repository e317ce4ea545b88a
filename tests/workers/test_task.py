"""Our base task where no worker runs it: a plain function."""

import subprocess
import sys
from pathlib import Path

import pytest
from celery import Celery

from workers import progress
from workers.task import Task, _key_of


@pytest.fixture
def app() -> Celery:
    return Celery("test", broker="memory://", backend="cache+memory://", task_cls=Task, set_as_current=False)


def test_called_as_a_function_it_reports_nothing(app: Celery) -> None:
    @app.task(bind=True, shared=False)
    def add(self: Task, left: int, right: int) -> int:
        self.progress(1, 2)
        self.update_state(state="HALFWAY", meta={})
        progress(2, 2)
        assert self.fence is None
        return left + right

    assert add(1, 2) == 3
    assert add.apply((1, 2)).get() == 3
    progress(1, 2)


def test_eager_body_knows_its_request(app: Celery) -> None:
    @app.task(bind=True, shared=False)
    def who(self: Task) -> str:
        return str(self.request.id)

    assert who.apply(task_id="mine").get() == "mine"


@pytest.mark.parametrize(("current", "total", "name"), [("1", 2, "current"), (1, "2", "total"), (True, 2, "current")])
def test_progress_names_what_is_no_number(app: Celery, current: object, total: object, name: str) -> None:
    @app.task(bind=True, shared=False)
    def body(self: Task) -> None:
        self.progress(current, total)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match=f"^{name}: must be a number"):
        body()


@pytest.mark.parametrize("header", ["text", {}, {"run_id": "x", "attempt": 1}, {"run_id": None, "attempt": None}, []])
def test_broken_header_is_named(header: object) -> None:
    class Request:
        jobplane = header
        retries = 0

    with pytest.raises(ValueError, match="header jobplane"):
        _key_of(Request())


def test_users_modules_get_our_base_class(tmp_path: Path) -> None:
    """`@shared_task` in a module of INCLUDE, as a service writes it that knows no app."""
    (tmp_path / "their_tasks.py").write_text(
        "from celery import shared_task\n@shared_task(name='theirs.add')\ndef add(a, b):\n    return a + b\n"
    )
    code = (
        "from workers.app import app; from workers.task import Task; app.loader.import_default_modules();"
        "app.finalize(); task = app.tasks['theirs.add']; assert isinstance(task, Task), type(task).__mro__;"
        "from celery import current_app; assert current_app._get_current_object() is app;"
        "assert app.conf.task_acks_late and not app.conf.task_reject_on_worker_lost"
    )
    env = {
        "JOBPLANE_WORKER_BROKER_URL": "redis://localhost/0",
        "JOBPLANE_WORKER_REDIS_URL": "redis://localhost/0",
        "JOBPLANE_WORKER_INCLUDE": "their_tasks",
        "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
