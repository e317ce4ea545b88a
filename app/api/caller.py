"""Who asks. Anonymous until there are keys; recorded as the author of every write."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends


@dataclass(frozen=True, slots=True)
class Caller:
    """The one who asks, by name."""

    name: str


async def caller() -> Caller:
    """The caller of this request."""
    return Caller(name="anonymous")


CallerOf = Annotated[Caller, Depends(caller)]
