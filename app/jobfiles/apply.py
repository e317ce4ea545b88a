"""`jobplane apply FILE` and `jobplane export`: jobs between files and a plane."""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from app.jobfiles.calls import Problem, call
from app.jobfiles.reading import File, read
from app.jobfiles.refusals import Refused, one_line


def apply(url: str, path: str, *, owner: str | None = None, prune: bool = False, dry_run: bool = False) -> None:
    """Make the plane have what a file says, and print the plan. What the options say goes before the file.

    Refused, with each fault behind its place in the file.
    """
    file = read(path)
    options = {"owner": owner, "prune": prune or None, "dry_run": dry_run or None}
    document = {**file.document, **{name: value for name, value in options.items() if value is not None}}
    try:
        plan = call(url, "POST", "/jobs/apply", json=document)
    except Problem as problem:
        if problem.status == 409:
            _tell_conflicts(url, file, document)
        raise Refused(*_told(file, problem)) from None
    write(*lines(plan))
    conflicts = list(_conflicts(file, plan))
    if conflicts:
        raise Refused(*conflicts)


def export(url: str, *, namespace: str | None = None, owner: str | None = None) -> None:
    """Print what a plane has as a file that `apply` takes back unchanged. Refused."""
    asked = {name: value for name, value in (("namespace", namespace), ("owner", owner)) if value is not None}
    try:
        document = call(url, "GET", "/jobs/export", params=asked)
    except Problem as problem:
        raise Refused(one_line(problem)) from None
    write(as_yaml(document))


def as_yaml(document: Mapping[str, Any]) -> str:
    """A document as the text of a file."""
    text: str = yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True, width=120)
    return text.rstrip("\n")


def lines(plan: Mapping[str, Any]) -> Iterator[str]:
    """A plan for people: what is not as it was, and a line that sums up."""
    for kind, items in (("queue ", plan["queues"]), ("", plan["jobs"])):
        for item in items:
            if item["action"] == "unchanged":
                continue
            name = item["name"] if kind else f"{item['namespace']}/{item['name']}"
            yield f"{item['action']:10}{kind}{name}"
            for change in item["changes"]:
                yield f"{'':12}{change['pointer']}: {_value(change['old'])} -> {_value(change['new'])}"
            for warning in item.get("warnings", ()):
                yield f"{'':12}warning: {one_line(warning['detail'])}"
    end = " (dry run: nothing was written)" if plan["dry_run"] else "" if plan["changed"] else ": nothing changed"
    yield f"{plan['summary']}{end}"


def write(*said: str) -> None:
    """Lines for the standard output."""
    sys.stdout.write("".join(f"{line}\n" for line in said))


def _value(value: Any) -> str:
    text = one_line(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= 200 else f"{text[:200]}..."


def _told(file: File, problem: Problem) -> Iterator[str]:
    if not problem.errors:
        yield f"{file.name}: {one_line(problem)}"
    for error in problem.errors:
        pointer = error["pointer"]
        place = f"{file.place(pointer)}: {pointer}" if pointer.startswith("/") else f"{file.name}: {pointer or '/'}"
        yield one_line(f"{place}: {error['detail']}")


def _conflicts(file: File, plan: Mapping[str, Any]) -> Iterator[str]:
    for item in plan["jobs"]:
        if item["action"] == "conflict":
            yield one_line(f"{file.place(item['pointer'])}: {item['pointer']}: {item['reason']}")


def _tell_conflicts(url: str, file: File, document: Mapping[str, Any]) -> None:
    """Refused with the places of all jobs that belong to others, if that is what is wrong."""
    try:
        plan = call(url, "POST", "/jobs/apply", json={**document, "dry_run": True})
    except Problem:
        return
    found = list(_conflicts(file, plan))
    if found:
        raise Refused(*found, "nothing was applied")
