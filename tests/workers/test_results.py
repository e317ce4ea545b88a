"""What a body may return, and what is said of what it may not."""

import decimal
import math
import uuid
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from workers.results import ResultNotJson, ResultTooLarge, checked

MIB = 1024 * 1024


class Thing:
    pass


class Odd:
    def __json__(self) -> Any:
        raise RuntimeError("not today")


def circle() -> list[Any]:
    made: list[Any] = [1]
    made.append({"me": made})
    return made


def deep() -> list[Any]:
    made: list[Any] = []
    for _ in range(5000):
        made = [made]
    return made


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        7,
        1.5,
        "text \x00 \ud800",
        {"rows": [1, (2, 3)], 5: "five"},
        [datetime.now(UTC), date(2026, 1, 1), uuid.UUID(int=7), decimal.Decimal("1.5"), b"\xff"],
    ],
)
def test_what_celery_can_carry_is_passed_on_untouched(value: Any) -> None:
    assert checked(value, MIB) is value


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Thing(), f"result: {__name__}.Thing cannot be JSON"),
        ({1, 2}, "result: set cannot be JSON"),
        ({"rows": [1, 2, 3, Path("/")]}, 'result["rows"][3]: pathlib.PosixPath cannot be JSON'),
        ({"mean": math.nan}, 'result["mean"]: nan cannot be JSON'),
        ([-math.inf], "result[0]: -inf cannot be JSON"),
        ({"a": {(1, 2): 3}}, 'result["a"]: a key that is tuple cannot be JSON'),
        (circle(), 'result[1]["me"]: list that contains itself cannot be JSON'),
        (deep(), "result: nested more than 500 levels deep"),
        ([Odd()], f"result[0]: {__name__}.Odd cannot be JSON: RuntimeError: not today"),
        ((n for n in range(3)), "result: generator cannot be JSON"),
    ],
)
def test_what_cannot_be_json_is_named_with_its_type_and_place(value: Any, said: str) -> None:
    with pytest.raises(ResultNotJson) as refused:
        checked(value, MIB)
    assert str(refused.value) == said
    assert refused.value.__suppress_context__


def test_a_result_that_is_too_large_says_both_figures() -> None:
    assert checked("x" * 98, 100)
    with pytest.raises(ResultTooLarge, match="the result has 101 bytes as JSON, and this worker may send 100"):
        checked("x" * 99, 100)
