"""What a worker tells of its tasks."""

import json
from typing import Any

from celery import Celery
from celery import Task as CeleryTask
from pydantic import BaseModel

from workers.contracts import contract_of, contracts_of


class Order(BaseModel):
    id: int


def app_with_tasks() -> Celery:
    app = Celery("t", set_as_current=False)

    @app.task(shared=False, name="plain")
    def plain(path: str, *, depth: int = 1) -> None:
        """Looks.

        Further words.
        """

    @app.task(shared=False, name="bound", bind=True, autoretry_for=(ValueError,))
    def bound(self: Any, x: int) -> None: ...

    @app.task(shared=False, name="order", pydantic=True)
    def order(given: Order) -> None: ...

    @app.task(shared=False, name="nul")
    def nul(x: str = "\0") -> None:
        """With \0."""

    @app.task(shared=False, name="anything")
    def anything(*args, **kwargs): ...

    class Old(CeleryTask):
        name = "old"

        def run(self, x: int, marker: object = object()) -> None: ...

    app.register_task(Old())
    app.finalize()
    return app


def told(app: Celery) -> tuple[str, dict[str, Any]]:
    # Shared tasks of other tests of this process are registered with every app.
    tasks = [task for name, task in sorted(app.tasks.items()) if "." not in name]
    digest, body = contracts_of(tasks)
    return digest, json.loads(body)


def test_each_kind_of_task_tells_what_it_takes() -> None:
    _, contracts = told(app_with_tasks())
    assert contracts.keys() == {"plain", "bound", "order", "anything", "old"}, "what a database cannot keep is not told"
    assert contracts["plain"] == {
        "signature": "(path: str, *, depth: int = 1) -> None",
        "doc": "Looks.",
        "schema": {
            "type": "object",
            "properties": {"path": {"type": "string"}, "depth": {"type": "integer"}},
            "required": ["path"],
            "additionalProperties": False,
            "positional": ["path"],
            "positional_only": [],
            "varargs": False,
        },
    }
    assert contracts["bound"]["signature"] == "(x: int) -> None"
    assert contracts["old"]["schema"]["positional"] == ["x", "marker"]
    assert contracts["old"]["schema"]["properties"]["marker"] == {}
    assert contracts["order"]["schema"]["properties"]["given"] == {"$ref": "#/$defs/Order"}
    assert contracts["anything"]["schema"]["additionalProperties"] is True
    assert contracts["anything"]["schema"]["varargs"] is True


def test_the_digest_names_what_is_told() -> None:
    first, second = told(app_with_tasks()), told(app_with_tasks())
    assert first == second, "the address of a default is not part of it"
    app = app_with_tasks()
    app.task(name="more", shared=False)(contract_of)
    app.finalize()
    assert told(app)[0] != first[0]
    assert contracts_of(())[1] == b"{}"


def test_what_is_large_is_cut() -> None:
    def large(x: int) -> None: ...

    large.__doc__ = "é" * 5000
    contract = contract_of(large)
    assert len(contract["doc"].encode()) <= 2048

    many = type("Many", (BaseModel,), {"__annotations__": {f"a_long_member_{n}": int for n in range(2000)}})

    def huge(x: Any) -> None: ...

    huge.__annotations__["x"] = many
    assert contract_of(huge)["schema"] is None
    assert contract_of(huge)["signature"].startswith("(x: ")
