"""The errors that a caller may see, as a tree.

    JobplaneError
    ├── Invalid            422  a value cannot be; `pointer` names the field
    ├── NotFound           404
    ├── Conflict           409  the state of things forbids it
    │   ├── NameTaken
    │   ├── QueueInUse
    │   ├── RunEnded
    │   └── RunStarted
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
    status = 404
    type = "not-found"
    title = "Not found"


class Conflict(JobplaneError):
    status = 409
    type = "conflict"
    title = "Conflict"


class NameTaken(Conflict):
    type = "name-taken"
    title = "Name taken"


class QueueInUse(Conflict):
    type = "queue-in-use"
    title = "Queue in use"


class RunEnded(Conflict):
    type = "run-ended"
    title = "The run has ended"


class RunStarted(Conflict):
    type = "run-started"
    title = "The run has started"


class PreconditionFailed(JobplaneError):
    status = 412
    type = "precondition-failed"
    title = "Precondition failed"


class BadRequest(JobplaneError):
    status = 400
    type = "bad-request"
    title = "Bad request"


class CursorMismatch(BadRequest):
    type = "cursor-mismatch"
    title = "Cursor of another list"


class Unavailable(JobplaneError):
    status = 503
    type = "unavailable"
    title = "Unavailable"
