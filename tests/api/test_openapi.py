"""The API's description: reviewed when it changes, complete, and readable without the internet.

After a change that is meant, write the snapshot again with

    .venv/bin/python -m tests.api.test_openapi
"""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.schemas.jobs import EXAMPLE_JOB, EXAMPLE_JOB_OUT, JobIn, JobOut
from app.api.schemas.queues import EXAMPLE_QUEUE, EXAMPLE_QUEUE_OUT, QueueIn, QueueOut
from app.api.schemas.runs import EXAMPLE_EVENT, EXAMPLE_RUN, EventOut, RunOut
from app.main import create_app
from app.settings import Settings
from tests.api.conftest import NOWHERE

SNAPSHOT = Path(__file__).parent / "openapi.json"


def description() -> dict[str, Any]:
    made: dict[str, Any] = create_app(Settings.load(**NOWHERE)).openapi()
    return made


def operations() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, item in description()["paths"].items()
        for method, operation in item.items()
    ]


def test_the_description_is_the_reviewed_one() -> None:
    assert json.loads(SNAPSHOT.read_text()) == description(), "if the change is meant, see the top of this file"


def test_each_operation_is_complete() -> None:
    found = operations()
    ids = [operation["operationId"] for _, operation in found]
    assert len(ids) == len(set(ids)) >= 26
    schemas = description()["components"]["schemas"]

    def has_example(content: dict[str, Any]) -> bool:
        schema = content.get("schema", {})
        name = schema.get("$ref", (schema.get("anyOf") or [{}])[0].get("$ref", "")).rpartition("/")[2]
        properties = schemas.get(name, {}).get("properties", {})
        items = properties.get("items", {}).get("items", {}).get("$ref", "").rpartition("/")[2]
        return "example" in content or "examples" in schemas.get(name, {}) or "examples" in schemas.get(items, {})

    for name, operation in found:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)+", operation["operationId"]), name
        assert operation["description"], name
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "query":
                assert "schema" in parameter, name
        if "requestBody" in operation:
            for kind, content in operation["requestBody"]["content"].items():
                empty = "NothingIn" in json.dumps(content)
                assert empty or has_example(content), f"{name} takes {kind} with no example"
        if not name.split()[1].startswith("/api/"):
            continue
        for status, answer in operation["responses"].items():
            for kind, content in answer.get("content", {}).items():
                assert has_example(content), f"{name} answers {status} with no example"
                assert (kind == "application/problem+json") == (int(status) >= 400), name
        assert {"422", "503"} <= set(operation["responses"]), name
        if "{" in name:
            assert "404" in operation["responses"], name


def test_each_reference_leads_somewhere() -> None:
    made = description()
    named = set(re.findall(r"#/components/schemas/([^\"/]+)", json.dumps(made)))
    assert len(named) > 40
    assert named <= set(made["components"]["schemas"])


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (JobIn, EXAMPLE_JOB),
        (JobOut, EXAMPLE_JOB_OUT),
        (RunOut, EXAMPLE_RUN),
        (EventOut, EXAMPLE_EVENT),
        (QueueIn, EXAMPLE_QUEUE),
        (QueueOut, EXAMPLE_QUEUE_OUT),
    ],
)
def test_examples_are_what_their_models_say(model: Any, example: dict[str, Any]) -> None:
    model.model_validate(example)


async def test_the_page_loads_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    page = await client.get("/", follow_redirects=True)
    assert (page.status_code, page.url.path) == (200, "/docs")
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", page.text)
    assert "http://" not in page.text
    assert "https://" not in page.text
    scripts = re.findall(r"""(?:src|href)=["']([^"']+)""", page.text)
    assert len(scripts) >= 3
    for script in scripts:
        assert (await client.get(script)).status_code == 200
    assert (await client.get("/redoc")).status_code == 404
    assert (await client.get("/openapi.json")).json() == description()


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(description(), indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {SNAPSHOT}")
