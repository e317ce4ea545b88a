"""`jobplane import MODULE:APP`: a Celery app's schedule as a file of jobs, and a report of what differs."""

import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from celery import Celery

from app.jobfiles.apply import as_yaml, write
from app.jobfiles.beat import OVERLAP, Import, convert
from app.jobfiles.refusals import REFUSED, WRONG, Refused
from app.schedule.triggers.zones import ZONES

PAGE: Final = "docs/from-beat.md"
#: Where Celery sends what names no queue.
_CELERYS_QUEUE: Final = "celery"


def import_schedule(
    target: str, *, namespace: str | None, owner: str | None, queue: str | None, timezone: str | None
) -> None:
    """Print the file on the standard output and the report on the other. Refused if an entry could be no job."""
    found = load(target)
    if isinstance(found, Celery):
        found.finalize()
        entries: Any = found.conf.beat_schedule
        zone, default = timezone or _zone(found), queue or found.conf.task_default_queue
    else:
        entries, zone, default = found, timezone or "UTC", queue or _CELERYS_QUEUE
    if not isinstance(entries, Mapping):
        raise Refused(f"{target}: is neither a Celery app nor a beat_schedule", status=WRONG)
    if zone not in ZONES:
        raise Refused(f"{zone}: is not an IANA time zone; name one with --timezone", status=WRONG)
    made = convert(entries, zone, str(default))
    write(as_yaml(made.document(namespace, owner)))
    sys.stderr.write("".join(f"{line}\n" for line in report(made)))
    if made.left_out:
        raise Refused(status=REFUSED)


def load(target: str) -> Any:
    """The object that `module:name` names, as seen from the folder one is in. Refused."""
    module, _, path = target.partition(":")
    if not module or not path:
        raise Refused(f"{target}: must be MODULE:APP or MODULE:SCHEDULE, as shop:app", status=WRONG)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except Exception as error:  # whatever that module does when it is imported
        raise Refused(f"{target} cannot be imported: {type(error).__name__}: {error}", status=WRONG) from None
    return found


def report(made: Import) -> Iterator[str]:
    """What differs in meaning, each sentence once, with the names of those that it is about."""
    yield f"{len(made.jobs)} of {len(made.jobs) + len(made.left_out)} entries are jobs, `enabled: false` for now."
    about: dict[str, list[str]] = {}
    for name, text in made.differs:
        about.setdefault(text, []).append(name)
    if made.jobs:
        about[OVERLAP] = ["all"]
    for text, names in about.items():
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        yield f"  {shown}: {text}."
    for name, why in made.left_out:
        yield f"  {name} is left out: {why}."
    yield f"{PAGE} tells all of it, and how to move without firing twice."


def _zone(app: Celery) -> str:
    name = getattr(app.timezone, "key", None) or str(app.timezone)
    return "UTC" if name == "Etc/UTC" else name
