"""Which arguments fit which function, as its worker tells of it."""

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from app.catalogue.fit import misfits
from workers.contracts import contract_of


class Colour(Enum):
    RED = "red"


class Post(BaseModel):
    id: int
    tags: list[str] = []
    parent: "Post | None" = None


class Thing:
    """Something that JSON Schema cannot express."""


def add(x: int, y: int = 0) -> int:
    return x + y


def free(*args: int, **kwargs: int) -> None: ...


def bare(path, mode="r"): ...


def names(a: str, /, b: str, *, c: float) -> None: ...


def many(*, kind: Literal["a", "b"] = "a", colour: Colour = Colour.RED, when: datetime | None = None) -> None: ...


def posts(found: list[Post], by: dict[str, int] | None = None) -> None: ...


def odd(
    thing: Thing,
    call: Callable[[], int],
    wait: timedelta,
    price: Decimal,
    where: Path,
    left: int = None,  # type: ignore[assignment]  # noqa: RUF013
) -> None: ...


def clash(schema: int, json: str, copy: bool, model_config: int = 1, _x: int = 1) -> None: ...


class Holder:
    def bound(self, x: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "pointers"),
    [
        (add, [1], {}, []),
        (add, [1, 2], {}, []),
        (add, [], {"x": 1, "y": 2}, []),
        (add, [1.0], {}, []),
        (add, [], {}, ["/kwargs/x"]),
        (add, [1, 2, 3], {}, ["/args/2"]),
        (add, [1], {"x": 2}, ["/kwargs/x"]),
        (add, [1], {"z": 2}, ["/kwargs/z"]),
        (add, ["1"], {}, ["/args/0"]),
        (add, [1], {"y": None}, ["/kwargs/y"]),
        (add, [1], {"a/b~c": 2}, ["/kwargs/a~1b~0c"]),
        (free, [1, "x", None], {"anything": []}, []),
        (bare, ["x", 3], {}, []),
        (bare, [{}], {"mode": []}, []),
        (bare, [], {"mode": "w"}, ["/kwargs/path"]),
        (names, ["a", "b"], {"c": 1}, []),
        (names, ["a"], {"b": "b", "c": 1.5}, []),
        (names, [], {"a": "a", "b": "b", "c": 1}, ["/args/0", "/kwargs/a"]),
        (names, ["a", "b", 1], {}, ["/args/2", "/kwargs/c"]),
        (many, [], {}, []),
        (many, ["a"], {}, ["/args/0"]),
        (many, [], {"kind": "c"}, ["/kwargs/kind"]),
        (many, [], {"colour": "red", "when": "2026-03-01T00:00:00Z"}, []),
        (many, [], {"colour": "blue", "when": 1772323200}, ["/kwargs/colour"]),
        (many, [], {"when": []}, ["/kwargs/when"]),
        (posts, [[{"id": 1, "parent": {"id": 2, "tags": ["x"]}}]], {"by": {"a": 1}}, []),
        (posts, [[{"id": 1}, {"id": "no"}, {}]], {}, ["/args/0/1/id", "/args/0/2"]),
        (posts, [{}], {"by": {"a": "b"}}, ["/args/0", "/kwargs/by"]),
        (odd, [1, 2, 3.5, "1.20", "/srv"], {"left": None}, []),
        (odd, ["x", [], "PT1S", 5, 7], {"left": "x"}, ["/args/4", "/kwargs/left"]),
        (clash, [1, "x", True], {"model_config": 2, "_x": 3}, []),
        (clash, ["x", 1, "x"], {"_x": "y"}, ["/args/0", "/args/1", "/args/2", "/kwargs/_x"]),
        (Holder().bound, [1], {}, []),
        (Holder().bound, [1, 2], {}, ["/args/1"]),
    ],
)
def test_what_fits(function: Any, args: list[Any], kwargs: dict[str, Any], pointers: list[str]) -> None:
    faults = misfits(contract_of(function)["schema"], args, kwargs)
    assert sorted(fault.pointer for fault in faults) == pointers
    assert all(fault.detail for fault in faults)


def whole(**schema: Any) -> dict[str, Any]:
    return {
        "properties": {"x": schema},
        "required": [],
        "additionalProperties": False,
        "positional": ["x"],
        "positional_only": [],
        "varargs": False,
        "$defs": {"loop": {"$ref": "#/$defs/loop"}},
    }


@pytest.mark.parametrize(
    "contract",
    [
        None,
        7,
        {},
        {"properties": 1, "positional": 2},
        whole(type="nonsense"),
        whole(pattern="(a+)+$"),
        whole(**{"$ref": "http://127.0.0.1:1/schema"}),
        whole(**{"$ref": "#/$defs/nowhere"}),
        whole(**{"$ref": "#/$defs/loop"}),
        whole(**{"$id": "http://127.0.0.1:1/", "$ref": "#/properties"}),
        whole(minimum="x"),
        whole(enum=5),
    ],
)
def test_a_contract_that_makes_no_sense_forbids_nothing(contract: Any) -> None:
    assert misfits(contract, ["a" * 40 + "!"], {}) == []


def test_a_pattern_may_be_the_name_of_an_argument() -> None:
    def search(pattern: str, format: int) -> None: ...

    schema = contract_of(search)["schema"]
    assert misfits(schema, ["x", 1], {}) == []
    assert [fault.pointer for fault in misfits(schema, [1, "x"], {})] == ["/args/0", "/args/1"]


def test_no_more_is_told_than_a_person_reads() -> None:
    faults = misfits(contract_of(add)["schema"], [1], {f"n{number}": 1 for number in range(100)})
    assert len(faults) == 10
    assert all(len(fault.detail) <= 300 for fault in faults)
