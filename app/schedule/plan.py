"""What a file of jobs means for the jobs that are there: whose they are, and which members change. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

#: The label that says which file, or deployment, a job belongs to.
OWNER: Final = "jobplane/owner"

_TRIGGER: Final = "/trigger"


@dataclass(frozen=True, slots=True)
class Change:
    """A member that gets another value: a JSON pointer into the job, and both values (None: it is not there)."""

    pointer: str
    old: Any
    new: Any


def changes(old: Mapping[str, Any], new: Mapping[str, Any], pointer: str = "") -> list[Change]:
    """What makes `new` of `old`, as deep as both have objects. A trigger of another type is one change."""
    return list(_changes(old, new, pointer))


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], pointer: str) -> Iterator[Change]:
    for name in [*new, *(name for name in old if name not in new)]:
        place = f"{pointer}/{escaped(name)}"
        before, after = old.get(name), new.get(name)
        if before == after and (name in old) == (name in new):
            continue
        if isinstance(before, dict) and isinstance(after, dict) and not _other_trigger(place, before, after):
            yield from _changes(before, after, place)
        else:
            yield Change(place, before, after)


def _other_trigger(place: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    return place == _TRIGGER and before.get("type") != after.get("type")


def escaped(name: str) -> str:
    """A member's name as a part of a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def stranger(labels: Mapping[str, str], owner: str | None) -> str | None:
    """Who owns the job with these labels, if that is somebody else than `owner`. A job of nobody is free to take."""
    theirs = labels.get(OWNER)
    return None if theirs in {None, owner} else theirs
