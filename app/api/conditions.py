"""`If-Match` and `If-None-Match` against the version of a resource."""

from typing import Annotated

from fastapi import Depends, Header, Response

from app.api.writes import tag
from app.errors import PreconditionFailed


def _names(header: str, version: int) -> bool:
    tags = [one.strip() for one in header.split(",")]
    return "*" in tags or tag(version) in tags


class IfMatch:
    """The condition of a write: only this version may be changed. Without the header any may be."""

    def __init__(
        self,
        if_match: Annotated[str | None, Header(description="write only if this ETag is still the current one")] = None,
    ) -> None:
        self._header = if_match

    def check(self, version: int) -> None:
        """PreconditionFailed if the caller expects another version."""
        if self._header is not None and not _names(self._header, version):
            raise PreconditionFailed(f"the ETag is {tag(version)}, not {self._header}")

    def check_absent(self) -> None:
        """PreconditionFailed if the caller expects any version of what is not there."""
        if self._header is not None:
            raise PreconditionFailed(f"there is nothing yet, so no ETag {self._header}")


class IfNoneMatch:
    """The condition of a read: only news, please."""

    def __init__(
        self,
        if_none_match: Annotated[str | None, Header(description="304 if this ETag is still the current one")] = None,
    ) -> None:
        self._header = None if if_none_match is None else if_none_match.replace("W/", "")

    def not_modified(self, version: int) -> Response | None:
        """The answer 304, if the caller has this version."""
        if self._header is None or not _names(self._header, version):
            return None
        return Response(status_code=304, headers={"ETag": tag(version)})


IfMatchOf = Annotated[IfMatch, Depends()]
IfNoneMatchOf = Annotated[IfNoneMatch, Depends()]
