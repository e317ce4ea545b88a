"""Files of jobs: what they say, where, and what is refused before any plane sees it."""

from pathlib import Path

import pytest

from app.jobfiles.reading import read
from app.jobfiles.refusals import Refused

TEXT = """\
owner: me
base: &base
  queue: q
jobs:
  - name: a
    <<: *base
    trigger:
      type: cron
      expression: "61 * * * *"
  - {name: b, labels: {"x/y": z}, start: 2026-01-01T00:00:00Z, day: 2026-01-02}
"""


def test_members_are_found_in_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_text(TEXT)
    file = read(str(path))
    places = {
        "": 1,
        "/owner": 1,
        "/jobs/0/name": 5,
        "/jobs/0/trigger/expression": 9,
        "/jobs/0/trigger/timezone": 7,
        "/jobs/0/task": 5,
        "/jobs/1/labels/x~1y": 10,
        "/jobs/7": 4,
        "/nothing/there": 1,
    }
    assert {pointer: file.place(pointer) for pointer in places} == {
        pointer: f"{path}:{line}" for pointer, line in places.items()
    }
    assert file.document["jobs"][0]["queue"] == "q"
    assert file.document["jobs"][1]["start"] == "2026-01-01T00:00:00+00:00"
    assert file.document["jobs"][1]["day"] == "2026-01-02"


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("jobs:\n  - name: [\n", 3, "expected"),
        ("jobs: []\nowner: a\njobs: []\n", 3, "`jobs` is there twice"),
        ("jobs:\n  - labels: {on: x}\n", 2, "the name `on` is no text"),
        ("jobs:\n  - kwargs:\n      1: x\n", 3, "the name `1` is no text"),
        ("- a\n", None, "must be a mapping"),
        ("", None, "must be a mapping"),
        ("a: .nan\n", None, "cannot be sent as JSON"),
        ("a: !!binary aGk=\n", None, "cannot be sent as JSON"),
        ("a: &a [*a]\n", None, "cannot be sent as JSON"),
        ("a: !!python/object:os.system {}\n", 1, "could not determine a constructor"),
        ("a: 2026-02-31\n", None, "day is out of range"),
        ("a: \x00\n", None, "special characters"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, line: int | None, reason: str) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_text(text)
    with pytest.raises(Refused) as refused:
        read(str(path))
    (said,) = refused.value.lines
    assert reason in said
    assert said.startswith(f"{path}:{line}: " if line else f"{path}: ")


def test_json_is_read_too_and_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = tmp_path / "jobs.json"
    path.write_text('{\n "jobs": [\n  {"name": "a"}\n ]\n}\n')
    assert read(str(path)).place("/jobs/0/name") == f"{path}:3"
    with pytest.raises(Refused, match="No such file"):
        read(str(tmp_path / "none.yaml"))
