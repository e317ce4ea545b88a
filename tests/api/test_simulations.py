"""Simulations over REST: what the example promises, and bodies that are refused with the field at fault."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.schemas.simulations import EXAMPLE, EXAMPLE_OUT, SimulationOut

URL = "/api/v1/triggers/simulate"


async def test_the_example_of_the_documentation_is_so(client: httpx.AsyncClient) -> None:
    answer = await client.post(URL, json=EXAMPLE)
    assert (answer.status_code, answer.json()) == (200, EXAMPLE_OUT)
    SimulationOut.model_validate(answer.json())


async def test_the_request_of_the_document_is_answered(client: httpx.AsyncClient) -> None:
    text = (Path(__file__).parents[2] / "docs" / "schedules.md").read_text()
    (body,) = re.findall(r"triggers/simulate -H .*?-d '(.*?)'", text, flags=re.DOTALL)
    answer = await client.post(URL, json=json.loads(body))
    assert answer.status_code == 200, answer.text
    assert answer.json()["scheduled"] == answer.json()["runs"] + answer.json()["skipped"] == 4


async def test_a_pause_and_a_run_that_never_began(client: httpx.AsyncClient) -> None:
    body = {
        **{**EXAMPLE, "outages": [], "run_s": 1500, "overlap": "buffer_all", "max_active": 1, "failing": [1, 2]},
        **{"start_deadline_s": 1000, "pause_after_failures": 1, "misfire": "all", "cancel_s": None},
    }
    shown = (await client.post(URL, json=body)).json()
    SimulationOut.model_validate(shown)
    assert [(one["event"], one.get("outcome") or one.get("reason")) for one in shown["events"]] == [
        ("run", "failure"),
        ("run", "failure"),
        ("run", "start_deadline"),
        ("pause", None),
        ("skip", "paused"),
    ]
    assert (shown["scheduled"], shown["runs"], shown["skipped"], shown["pending"]) == (6, 3, 3, 0)


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"trigger": {"type": "cron", "expression": "* * *"}}, "/trigger/expression"),
        ({"overlap": "wait"}, "/overlap"),
        ({"max_active": 0}, "/max_active"),
        ({"catchup_window_s": -1}, "/catchup_window_s"),
        ({"from": "2026-11-22T10:00:00"}, "/from"),
        ({"to": EXAMPLE["from"]}, "/to"),
        ({"to": "2027-11-24T10:00:00Z"}, "/to"),
        ({"run_s": -1}, "/run_s"),
        ({"run_s": []}, "/run_s"),
        ({"run_s": [1, "2"]}, "/run_s/1"),
        ({"run_s": None}, "/run_s"),
        ({"outages": [{"from": EXAMPLE["from"], "to": EXAMPLE["from"]}]}, "/outages/0/to"),
        ({"failing": [0]}, "/failing/0"),
        ({"cancel_s": "soon"}, "/cancel_s"),
        ({"task": "t"}, "/task"),
        ({"trigger": {"type": "interval", "every_s": 1}, "to": "2026-11-29T10:00:00Z"}, "/to"),
        ({"trigger": {"type": "interval", "every_s": 1}}, "/to"),
    ],
)
async def test_refused(client: httpx.AsyncClient, changes: dict[str, Any], pointer: str) -> None:
    answer = await client.post(URL, json={**EXAMPLE, **changes})
    assert answer.status_code == 422, answer.text
    pointers = {error["pointer"] for error in answer.json()["errors"]}
    assert pointer in pointers
    assert all(pointer.startswith(other) for other in pointers), "a list or number is told of as both"
