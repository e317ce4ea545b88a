"""`docs/reliability.md` tells no tales: its rows are complete, and the tests that it names exist."""

import ast
import re
from pathlib import Path

import pytest
from celery.backends.base import DisabledBackend

from app.dispatch import message

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "reliability.md").read_text()

#: The rows of each kind. Those of users of other schedulers (U) have the numbers that their tests carry.
ROWS = {
    **{"P": range(1, 15), "B": range(1, 15), "R": range(1, 5), "E": range(1, 13)},
    "U": [*range(4, 12), *range(16, 24), 36, 37],
}


def functions_in(path: Path) -> dict[str, str]:
    """The functions of a file by name, each with its name and docstring as one text."""
    return {
        node.name: f"{node.name} {ast.get_docstring(node)}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def pains_of(text: str) -> set[int]:
    """The numbers that a test carries, such as `test_pains_5_and_22_...` or "Pain 11."."""
    found = re.findall(r"pains?[ _](\d+(?:(?:, |[ _]and[ _])\d+)*)", text, flags=re.IGNORECASE)
    return {int(number) for numbers in found for number in re.findall(r"\d+", numbers)}


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/.]+)::(\w+)`", TEXT)
    assert len(named) > 50
    assert [f"{path}::{name}" for path, name in named if name not in functions_in(ROOT / path)] == []


def test_every_row_is_there_and_shows_a_test_or_says_why_not() -> None:
    rows = dict(re.findall(r"^\| ([A-Z]\d+) \|(.*)\|$", TEXT, flags=re.MULTILINE))
    assert list(rows) == [f"{kind}{n}" for kind, numbers in ROWS.items() for n in numbers]
    for name, row in rows.items():
        *cells, shown = row.split(" | ")
        assert len(cells) == 2, name
        assert "::test_" in shown or shown.strip().startswith("none: "), name


@pytest.mark.parametrize("number", ROWS["U"])
def test_each_test_of_a_pain_carries_its_number(number: int) -> None:
    (row,) = re.findall(rf"^\| U{number} \|.*$", TEXT, flags=re.MULTILINE)
    named = re.findall(r"`(tests/[\w/.]+)::(\w+)`", row)
    assert named
    for path, name in named:
        assert number in pains_of(functions_in(ROOT / path)[name]), f"{path}::{name}"


def test_the_message_maker_keeps_nothing_open() -> None:
    assert isinstance(message._app.backend, DisabledBackend)
    assert message._app.conf.task_create_missing_queues is False
