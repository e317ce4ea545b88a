"""`jobplane apply`, `export` and `import` against a real API."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from app.cli import cli
from tests.acceptance.plane import Api, Plane
from tests.processes import Process

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "community" / "jobs.yaml"
PAGE = (ROOT / "docs" / "jobs-as-files.md").read_text()


def run(*arguments: str | Path, status: int = 0, url: str = "", text: str = "") -> tuple[str, str]:
    """What a command prints on the standard output and on the other."""
    result = CliRunner(env={"JOBPLANE_URL": url}).invoke(cli, [*map(str, arguments)], input=text)
    assert result.exit_code == status, f"{result.output}{result.exception!r}"
    return result.stdout, result.stderr


@pytest.fixture
def api(start_process: Callable[..., Process], database_url: str, redis_url: str) -> Api:
    return Plane(start_process, database_url, redis_url, redis_url).api()


@pytest.mark.acceptance
def test_files_are_applied_exported_and_refused(api: Api, tmp_path: Path) -> None:
    _the_example_is_applied_and_comes_back(api, tmp_path)
    _faults_are_told_with_their_lines(api, tmp_path)
    _another_owner_is_told_with_his_lines(api, tmp_path)
    _the_page_is_so(api, tmp_path)


def _jobs(api: Api) -> dict[str, dict[str, Any]]:
    return {f"{job['namespace']}/{job['name']}": job for job in api.every("/jobs")}


def _the_example_is_applied_and_comes_back(api: Api, tmp_path: Path) -> None:
    planned, _ = run("apply", EXAMPLE, "--dry-run", url=api.url)
    assert planned.splitlines()[0] == "create    queue forum"
    assert planned.splitlines()[-1] == "8 to create (dry run: nothing was written)"
    assert _jobs(api) == {}
    made, _ = run("apply", EXAMPLE, url=api.url)
    assert "create    media/upload" in made
    assert made.splitlines()[-1] == "8 created"
    before = _jobs(api)
    assert before.keys() == {f"{job['namespace']}/{job['name']}" for job in yaml.safe_load(EXAMPLE.read_text())["jobs"]}
    assert run("apply", EXAMPLE, url=api.url)[0] == "8 unchanged: nothing changed\n"

    run("apply", EXAMPLE, "--owner", "site", url=api.url)
    for options in ((), ("--namespace", "forum"), ("--owner", "site")):
        file = tmp_path / "export.yaml"
        file.write_text(run("export", *options, url=api.url)[0])
        again, _ = run("apply", file, "--prune" if "--owner" in options else "--dry-run", url=api.url)
        assert ("unchanged: nothing changed" in again) or ("unchanged (dry run" in again), again
        assert not re.search(r"(?m)^(create|update|prune)", again)
    less = yaml.safe_load(file.read_text())
    del less["jobs"][0]
    file.write_text(yaml.safe_dump(less))
    gone, _ = run("apply", file, "--prune", url=api.url)
    assert gone == "prune     forum/comment-score\n7 unchanged, 1 pruned\n"
    assert len(_jobs(api)) == 5


def _faults_are_told_with_their_lines(api: Api, tmp_path: Path) -> None:
    file = tmp_path / "faults.yaml"
    file.write_text(
        "jobs:\n"
        "  - name: a\n    task: x\n    queue: nowhere\n    trigger: {type: interval, every_s: 60}\n"
        "  - name: b\n    task: x\n    queue: forum\n    trigger:\n      type: cron\n      expression: 61 * * * *\n"
    )
    out, said = run("apply", file, status=1, url=api.url)
    assert out == ""
    assert said.startswith(f"jobplane: {file}:11: /jobs/1/trigger/expression: ")
    file.write_text(file.read_text().replace("61", "1"))
    _, said = run("apply", file, status=1, url=api.url)
    assert said.splitlines() == [
        f"jobplane: {file}:4: /jobs/0/queue: there is no queue 'nowhere'",
        f"jobplane: {file}:8: /jobs/1/queue: the queue 'forum' belongs to the namespace 'forum' and is not shared with "
        "'default'",
    ]
    _, said = run("apply", "-", status=1, url=api.url, text="jobs: [}")
    assert said.startswith("jobplane: stdin:1: ")
    _, said = run("apply", EXAMPLE, "--prune", status=1, url=api.url)
    assert "/owner: is required to prune" in said
    _, said = run("apply", EXAMPLE, status=2, url="http://127.0.0.1:9")
    assert "no plane at http://127.0.0.1:9" in said
    _, said = run("export", status=2, url="nowhere")
    assert "must be the address of a plane" in said


def _another_owner_is_told_with_his_lines(api: Api, tmp_path: Path) -> None:
    before = _jobs(api)
    for options in ((), ("--dry-run",)):
        _, said = run("apply", EXAMPLE, "--owner", "other", *options, status=1, url=api.url)
        assert f"{EXAMPLE}:13: /jobs/0: the job forum/post-score belongs to the owner 'site'" in said
        assert ("nothing was applied" in said) == (not options)
    assert _jobs(api) == before


def _the_page_is_so(api: Api, tmp_path: Path) -> None:
    """The page's file, and what the page says that the commands print."""
    files = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    file = tmp_path / "jobs.yaml"
    file.write_text(files[0])
    (console,) = re.findall(r"```console\n(.*?)```", PAGE, flags=re.DOTALL)[:1]
    for part in console.split("$ ")[1:]:
        typed, _, shown = part.partition("\n")
        if typed.startswith("sed"):
            file.write_text(file.read_text().replace("every_s: 600", "every_s: 300"))
            continue
        words = [str(file) if word == "jobs.yaml" else word for word in typed.split()[1:]]
        out, _ = run(*words, url=api.url)
        assert re.sub(r"(?m)^ +warning: .*\n", "", out) == shown, typed


def test_a_schedule_is_imported_with_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_of_a_test.py").write_text(
        "from celery import Celery\nfrom celery.schedules import crontab\n"
        "app = Celery('shop')\n"
        "app.conf.update(timezone='Europe/Paris', task_default_queue='shop')\n"
        "@app.on_after_finalize.connect\n"
        "def add(sender, **_):\n"
        "    sender.add_periodic_task(20.0, sender.signature('shop.added'), name='added')\n"
        "BEAT_SCHEDULE = {'nightly': {'task': 'shop.nightly', 'schedule': crontab(minute=30, hour=2)},\n"
        "    'half': {'task': 'shop.half', 'schedule': 0.5}}\n"
        "app.conf.beat_schedule = {'nightly': BEAT_SCHEDULE['nightly']}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    out, report = run("import", "shop_of_a_test:app", "--namespace", "shop", "--owner", "shop/deploy")
    document = yaml.safe_load(out)
    assert (document["owner"], document["namespace"], document["queues"]) == ("shop/deploy", "shop", [{"name": "shop"}])
    assert {job["name"]: job["trigger"] for job in document["jobs"]} == {
        "nightly": {"type": "cron", "expression": "30 2 * * *", "timezone": "Europe/Paris"},
        "added": {"type": "interval", "every_s": 20},
    }
    assert report.startswith("2 of 2 entries are jobs")
    assert "nightly: when the clocks change" in report
    assert "docs/from-beat.md" in report

    out, report = run("import", "shop_of_a_test:BEAT_SCHEDULE", "--timezone", "UTC", "--queue", "q", status=1)
    assert [(job["name"], job["queue"]) for job in yaml.safe_load(out)["jobs"]] == [("nightly", "q")]
    assert "half is left out: there is no interval of 0.5 s here" in report
    for target, why in (
        ("shop_of_a_test", "must be MODULE:APP"),
        ("shop_of_a_test:nothing", "AttributeError"),
        ("no_module_of_a_test:app", "ModuleNotFoundError"),
        ("shop_of_a_test:crontab", "neither a Celery app nor"),
    ):
        assert why in run("import", target, status=2)[1]
    assert "not an IANA time zone" in run("import", "shop_of_a_test:BEAT_SCHEDULE", "--timezone", "Mars", status=2)[1]
