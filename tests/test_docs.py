"""What the documents say is so: settings, problems, commands, links, and the examples, run for real."""

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from app.api import problems
from app.cli import cli
from app.settings import Settings, UpSettings
from tests.acceptance.plane import Api, Plane
from tests.processes import Process, wait_until
from workers.settings import Settings as WorkerSettings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def tracked() -> list[Path]:
    """The files that belong to the project; outside of a clone, all but what `.gitignore` names at the top."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return [path for name in names.splitlines() if (path := ROOT / name).is_file()]
    left_out = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    return [path for path in ROOT.rglob("*") if path.is_file() and not left_out & {*path.relative_to(ROOT).parts}]


DOCUMENTS = [path for path in tracked() if path.suffix == ".md"]


def row(prefix: str, name: str, field: FieldInfo) -> str:
    """The line of a settings table for one field."""
    return f"| `{prefix}{name.upper()}` | {_default(field)} | {field.description} |"


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        value = ",".join(value)
    return "" if value is None or value == "" else f"`{value}`"


def _fields(kind: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    yield from kind.model_fields.items()


def expected_rows() -> list[str]:
    """Every setting there is, each once; `jobplane up` adds its own to the plane's."""
    only_up = [(name, field) for name, field in _fields(UpSettings) if name not in Settings.model_fields]
    return [
        *(row("JOBPLANE_", name, field) for name, field in [*_fields(Settings), *only_up]),
        *(row("JOBPLANE_WORKER_", name, field) for name, field in _fields(WorkerSettings)),
    ]


def test_the_tables_name_every_setting_with_its_default_and_meaning() -> None:
    rows = [line for line in README.splitlines() if line.startswith("| `JOBPLANE_") and line.count("|") == 4]
    assert [line for line in rows if not line.startswith("| `JOBPLANE_URL`")] == expected_rows()


def test_every_variable_that_a_command_reads_is_named() -> None:
    command: Any = typer.main.get_command(cli)
    named = {option.envvar for one in command.commands.values() for option in one.params if option.envvar}
    assert named
    for name in named:
        assert f"| `{name}` |" in README


def test_every_problem_is_explained_once() -> None:
    text = (ROOT / "docs" / "problems.md").read_text()
    explained = re.findall(r"^### `([a-z-]+)`\n(\d{3})\. ", text, flags=re.MULTILINE)
    assert sorted(explained) == sorted((name, str(kind.status)) for name, kind in problems.kinds().items())


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if target.startswith(("https://", "http://")):
            continue
        place, _, anchor = target.partition("#")
        found = (path.parent / place).resolve() if place else path
        assert found.exists(), f"{target} of {path.name}"
        assert not anchor or anchor in _anchors(found.read_text()), f"{target} of {path.name}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(path: Path) -> None:
    text = path.read_text()
    names = {command.name or command.callback.__name__ for command in cli.registered_commands if command.callback}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    code = " ; ".join(re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL) + re.findall(r"`([^`\n]+)`", text))
    assert set(re.findall(r"(?:^|[ /;$])jobplane ([a-z]+)\b", code)) <= names | {"is"}
    assert set(re.findall(r"(?:^|[;$] )make ([a-z-]+)", code)) <= targets


def test_files_that_the_documents_name_exist() -> None:
    for path in DOCUMENTS:
        for name in re.findall(r"`((?:app|workers|tests|docs|alembic|\.ci)/[\w./-]*)`", path.read_text()):
            assert (ROOT / name).exists(), f"{name}, named in {path.name}"


def test_every_library_has_its_line() -> None:
    text = (ROOT / "docs" / "decisions" / "0002-libraries.md").read_text()
    project = (ROOT / "pyproject.toml").read_text().partition("[dependency-groups]")[0]
    for name in re.findall(r"""^\s+"([a-z-]+)[\[>=]""", project, flags=re.MULTILINE):
        assert f"`{name}`" in text, f"why {name}?"


def test_nothing_is_fetched_from_a_content_network() -> None:
    pattern = re.compile(
        r"(?:cdn[.]|jsdel" + r"ivr|unp" + r"kg[.]com|goog" + r"leapis|cloud" + r"flare)", re.IGNORECASE
    )
    for path in tracked():
        if path.suffix in {".py", ".md", ".html", ".js", ".css", ".toml", ".yaml", ".json"} and path != Path(__file__):
            assert not pattern.search(path.read_text()), path


@pytest.mark.parametrize("path", sorted(ROOT.glob("requirements*.txt")), ids=lambda path: path.name)
def test_locks_hold_hashes_and_no_addresses(path: Path) -> None:
    text = path.read_text()
    assert "://" not in text
    assert not re.search(r"^(?:-|[^\s#]+ @ )", text, flags=re.MULTILINE), "neither options nor direct references"
    requirements = re.split(r"\n(?=\S)", text.strip())
    assert requirements
    assert all("==" in one and "--hash=sha256:" in one for one in requirements)


def _example() -> list[tuple[str, str]]:
    """The console of the README's example: commands, and what they print."""
    (console,) = re.findall(r"## An example\n.*?```console\n(.*?)```", README, flags=re.DOTALL)
    lines = iter(console.splitlines())
    found: list[tuple[str, list[str]]] = []
    for line in lines:
        if line.startswith("$ "):
            command = line[2:]
            while command.count("'") % 2:  # a quote is open: the next line belongs to it
                command += "\n" + next(lines)
            found.append((command, []))
        else:
            found[-1][1].append(line)
    return [(command, "\n".join(output)) for command, output in found]


_VARYING = [
    (r"\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d)", "INSTANT"),
    (r"\b[0-9a-f]{64}\b", "DIGEST"),
    (r'"[\w.-]+@[\w.-]+"', '"WORKER"'),
    (r'(?<=: )"?/[^\s"]+"?', "PATH"),
    (r"(?m)^(?:STARTED|PROGRESS|SUCCESS) [^a].*\n?", ""),  # the bar, or the lines in its place
    (r'"file:///[^"]*\.log"', '"LOG"'),
    (r'("(?:rate|left_s)": )(?:null|[\d.]+)', r"\1MEASURED"),  # null if only one word was heard so far
    (r"(?<![\w-])\d+(?:\.\d+)?(?![\w-])", "NUMBER"),
]


def _shape(text: str, ids: dict[str, str]) -> str:
    for given, shown in ids.items():
        text = text.replace(given, shown)
    for pattern, word in _VARYING:
        text = re.sub(pattern, word, text)
    return text.strip()


@pytest.fixture
def plane(start_process: Callable[..., Process], database_url: str, redis_url: str) -> tuple[Plane, Api, Process]:
    """A plane with one of each part."""
    plane = Plane(start_process, database_url, redis_url, redis_url)
    api = plane.api()
    scheduler = plane.scheduler()
    plane.worker()
    assert api.process is not None
    return plane, api, scheduler


@pytest.mark.acceptance
def test_the_example_prints_what_the_readme_shows(plane: tuple[Plane, Api, Process], tmp_path: Path) -> None:
    _, api, _ = plane
    folder = tmp_path / "large"
    folder.mkdir()
    with (folder / "holes").open("wb") as file:
        file.truncate(3 * 2**30)  # takes seconds to read, and no room on the disk
    uuid = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    ids: dict[str, str] = {}
    settings = ""
    for command, shown in _example():
        for own, given in ids.items():
            command = command.replace(own, given)
        command = command.replace("/usr/share", str(folder)).replace("http://127.0.0.1:8000", api.url)
        command = command.replace(".venv/bin/jobplane watch", f"{sys.executable} -P -m app.cli watch --url {api.url}")
        if re.match(r"[A-Z]+=", command):
            settings = command
        said = subprocess.run(
            ["bash", "-c", f"{settings}\n{command}"], cwd=ROOT, capture_output=True, text=True, timeout=60
        ).stdout.replace("\r", "")
        for own, given in zip(re.findall(uuid, shown), re.findall(uuid, said), strict=False):
            ids.setdefault(own, given)
        back = {given: own for own, given in ids.items()}
        assert _shape(said, back) == _shape(shown, {}), command


@pytest.mark.acceptance
def test_the_client_of_the_feed_document_follows_runs_over_a_restart_of_the_api(
    plane: tuple[Plane, Api, Process], tmp_path: Path, start_process: Callable[..., Process]
) -> None:
    parts, api, _ = plane
    (text,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "feed.md").read_text(), flags=re.DOTALL)
    script = tmp_path / "client.py"
    script.write_text(text)
    client = start_process([sys.executable, script, api.socket.removesuffix("/api/v1")], name="client")

    def digest() -> str:
        made: dict[str, Any] = api.post("/runs", {"task": "files.digest", "kwargs": {"path": str(tmp_path)}})
        return str(made["id"])

    # A run that ended before the client was there is not in its snapshot, so one is asked for until one is shown.
    for _ in range(30):
        shown = f"{digest()} files.digest SUCCESS"
        with contextlib.suppress(AssertionError):
            wait_until(lambda shown=shown: shown in client.output(), 1)
            break
    assert "SUCCESS" in client.output()
    assert api.process is not None
    api.process.stop()
    start_process(
        [sys.executable, "-P", "-m", "app.cli", "api"],
        name="api-again",
        env=parts.environment(JOBPLANE_PORT=api.url.rpartition(":")[2]),
    )
    wait_until(api.answers, 30, "the API answers again")
    client.wait_for_line(f"{digest()} files.digest SUCCESS")
    assert client.poll() is None
