"""The errors that a caller may see, as a tree.

    JobplaneError
    ├── Invalid            422  a value cannot be; `pointer` names the field
    ├── NotFound           404
    ├── Conflict           409  the state of things forbids it
    │   ├── NameTaken
    │   ├── QueueInUse
    │   ├── NoRoom
    │   ├── BackfillActive
    │   └── RunEnded
    ├── ResultGone         410  the result of a run is kept nowhere
    ├── PreconditionFailed 412  If-Match names another version
    ├── BadRequest         400  cannot be understood
    │   └── CursorMismatch
    └── Unavailable        503  a part we need is away

Each class has a stable `type` (the last part of a problem's URI), a status and a title. Only `app/api` makes HTTP
bodies of them.
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldError:
    """One value that cannot be: a JSON pointer into the body (or `?name` for a query parameter), and why."""

    pointer: str
    detail: str


class JobplaneError(Exception):
    """The root. `detail` is a sentence for the caller."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Invalid(JobplaneError):
    """A value is well formed but cannot be; names every field at fault."""

    status = 422
    type = "invalid"
    title = "Invalid value"

    def __init__(self, *errors: FieldError) -> None:
        super().__init__("; ".join(f"{error.pointer}: {error.detail}" for error in errors))
        self.errors = list(errors)

    @classmethod
    def field(cls, pointer: str, detail: str) -> "Invalid":
        return cls(FieldError(pointer, detail))


class NotFound(JobplaneError):
    """There is nothing under this address, or it was deleted."""

    status = 404
    type = "not-found"
    title = "Not found"


class Conflict(JobplaneError):
    """The state of things forbids what was asked; `detail` says which."""

    status = 409
    type = "conflict"
    title = "Conflict"


class NameTaken(Conflict):
    """Another job of the namespace, or another queue of the plane, has this name."""

    type = "name-taken"
    title = "Name taken"


class QueueInUse(Conflict):
    """Jobs name this queue, or runs on it have not ended; they would have nowhere to go."""

    type = "queue-in-use"
    title = "Queue in use"


class NoRoom(Conflict):
    """Other runs of the job have not ended, and the overlap policy lets no further one wait or begin."""

    type = "no-room"
    title = "No room for a further run"


class BackfillActive(Conflict):
    """The job has a backfill that has not ended, and one at a time may be."""

    type = "backfill-active"
    title = "A backfill is active"


class RunEnded(Conflict):
    """The run is in a terminal state, and that never changes."""

    type = "run-ended"
    title = "The run has ended"


class ResultGone(JobplaneError):
    """The run has succeeded, and its result is kept nowhere: lost, too large, or taken out of the log store."""

    status = 410
    type = "result-gone"
    title = "The result is gone"


class PreconditionFailed(JobplaneError):
    """`If-Match` names a version that is not the current one: read the resource again, then decide."""

    status = 412
    type = "precondition-failed"
    title = "Precondition failed"


class BadRequest(JobplaneError):
    """The request cannot be understood."""

    status = 400
    type = "bad-request"
    title = "Bad request"


class CursorMismatch(BadRequest):
    """`cursor` came from another list, or from this one with other filters: begin at the first page."""

    type = "cursor-mismatch"
    title = "Cursor of another list"


class Unavailable(JobplaneError):
    """A part that is needed for this is away or busy. Nothing was written; `Retry-After` says when to try again."""

    status = 503
    type = "unavailable"
    title = "Unavailable"
