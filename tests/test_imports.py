"""Who may import whom: the way of the data, kept."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LEAVES = {"app.settings", "app.errors", "app.states", "app.faults"}
GROUND = {
    *LEAVES,
    "app.models",
    "app.database",
    "app.loop",
    "app.amqp",
    "app.schedule.triggers",
    "app.logs.place",
    "app.logs.store",
}
STAGES = {"app.progress", "app.schedule", "app.due", "app.dispatch", "app.feed", "app.catalogue", "app.logs"}
PROTOCOL = "workers.protocol"

#: What a part may import of ours. The longest name that fits decides.
MAY_IMPORT: dict[str, set[str]] = {
    **{leaf: set() for leaf in LEAVES},
    "app.settings": {"app.faults"},
    "app.models": LEAVES,
    "app.database": LEAVES,
    "app.schedule.triggers": LEAVES,
    "app.log": {"app.settings"},
    "app.logs.place": set(),
    "app.logs.store": LEAVES,
    "app.logs": {*GROUND, "app.progress", PROTOCOL},
    "app.loop": {"app.errors"},
    "app.amqp": set(),
    "app.migrate": LEAVES,
    "app.progress": {*GROUND, PROTOCOL},
    "app.schedule": {*GROUND, "app.progress", PROTOCOL},
    "app.due": {*GROUND, "app.progress", PROTOCOL},
    "app.dispatch": {*GROUND, "app.progress", PROTOCOL},
    "app.feed": {*GROUND, "app.progress", "app.logs", PROTOCOL},
    "app.catalogue": {*GROUND, "app.progress", PROTOCOL},
    "app.doctor": {
        *GROUND,
        "app.progress",
        "app.catalogue",
        "app.dispatch",
        "app.logs",
        "app.log",
        "app.migrate",
        PROTOCOL,
    },
    "app.api": {*GROUND, *STAGES, PROTOCOL},
    "app.main": {*GROUND, *STAGES, "app.api", "app.log", PROTOCOL},
    "app.scheduler": {
        *GROUND,
        "app.due",
        "app.dispatch",
        "app.progress",
        "app.catalogue",
        "app.logs",
        "app.log",
        "app.loop",
        PROTOCOL,
    },
    "app.embedded": set(),
    "app.watch": LEAVES,
    "app.jobfiles": {*LEAVES, "app.schedule.triggers"},
    "app.up": {"app.embedded", "app.migrate", "app.settings"},
    "app.cli": {"app", PROTOCOL},
    "workers": {"workers"},
    PROTOCOL: set(),
}

#: Libraries that belong into few places.
ONLY_IN = {
    "fastapi": {"app.api", "app.main"},
    "starlette": {"app.api", "app.main"},
    "fastapi_offline": {"app.main"},
    "uvicorn": {"app.main", "app.api.server"},
    "celery": {"app.dispatch", "app.progress", "app.catalogue", "app.jobfiles", "workers"},
    "kombu": {"app.dispatch", "app.progress", "workers"},
    "aio_pika": {"app.amqp", "app.dispatch", "app.progress"},
    "cronsim": {"app.schedule.triggers"},
    "dateutil": {"app.schedule.triggers.rules"},
    "ephem": {"app.schedule.triggers.solar"},
    "jsonschema": {"app.catalogue"},
    "obstore": {"app.logs.store"},
    "typer": {"app.cli"},
}


def within(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


@functools.cache
def modules() -> dict[str, Path]:
    files = [path for package in ("app", "workers") for path in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports(name: str, path: Path) -> Iterator[str]:
    known = modules()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else str(node.module)


@pytest.mark.parametrize("name", modules())
def test_imports_go_with_the_way_of_the_data(name: str) -> None:
    if name == "app":
        return
    part = max((part for part in MAY_IMPORT if within(name, part)), key=len, default=None)
    assert part is not None, f"{name} has no place in the way of the data: give it one here"
    for imported in imports(name, modules()[name]):
        if imported.split(".")[0] in {"app", "workers"}:
            allowed = {part, *MAY_IMPORT[part]}
            assert any(within(imported, other) for other in allowed), f"{name} may not import {imported}"


@pytest.mark.parametrize("name", modules())
def test_libraries_stay_where_they_belong(name: str) -> None:
    for imported in imports(name, modules()[name]):
        places = ONLY_IN.get(imported.split(".")[0])
        assert places is None or any(within(name, place) for place in places), f"{name} may not import {imported}"


@pytest.mark.parametrize("name", modules())
def test_the_environment_is_read_in_the_settings_only(name: str) -> None:
    if name not in {"app.settings", "workers.settings"}:
        text = modules()[name].read_text()
        assert "os.environ" not in text
        assert "getenv" not in text


@pytest.mark.parametrize("name", modules())
def test_the_commit_stands_in_one_file(name: str) -> None:
    if name != "app.database":
        assert ".commit()" not in modules()[name].read_text()


def test_alembic_does_not_hide_the_installed_package() -> None:
    assert not (ROOT / "alembic" / "__init__.py").exists()
