"""`docs/reliability.md` tells no tales: its rows are complete, and the tests that it names exist."""

import ast
import re
from pathlib import Path

from celery.backends.base import DisabledBackend

from app.dispatch import message

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "reliability.md").read_text()

#: How many rows there are of each kind.
ROWS = {"P": 14, "B": 14, "R": 4, "E": 12}


def functions_in(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/.]+)::(\w+)`", TEXT)
    assert len(named) > 50
    assert [f"{path}::{name}" for path, name in named if name not in functions_in(ROOT / path)] == []


def test_every_row_is_there_and_shows_a_test_or_says_why_not() -> None:
    rows = dict(re.findall(r"^\| ([A-Z]\d+) \|(.*)\|$", TEXT, flags=re.MULTILINE))
    assert list(rows) == [f"{kind}{n}" for kind, count in ROWS.items() for n in range(1, count + 1)]
    for name, row in rows.items():
        *cells, shown = row.split(" | ")
        assert len(cells) == 2, name
        assert "::test_" in shown or shown.strip().startswith("none: "), name


def test_the_message_maker_keeps_nothing_open() -> None:
    assert isinstance(message._app.backend, DisabledBackend)
    assert message._app.conf.task_create_missing_queues is False
