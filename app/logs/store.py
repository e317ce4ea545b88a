"""The log store: objects in a folder or in a bucket that speaks S3, for logs and large results of runs.

    StoreAway   a folder or bucket that cannot be reached, read or written; names it

Paths come out of `app.logs.place`, never out of what somebody sent. An object is written whole or not at all: whoever
reads finds the old one or the new one.
"""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import S3Store

from app.errors import Unavailable

log = structlog.get_logger()

#: Longest that one call may take, with its own retries in it.
CALL_S: Final = 15.0
_CHECK: Final = ".jobplane"
_DELETED_AT_ONCE: Final = 500


class StoreAway(Unavailable):
    """The log store cannot be reached, read or written. Logs and large results wait until it is back."""


class _Kind(Protocol):
    async def put(self, path: str, body: bytes) -> None: ...

    async def get(self, path: str, start: int, end: int | None) -> bytes | None: ...

    async def delete(self, paths: list[str]) -> None: ...


class Store:
    """What `JOBPLANE_LOG_STORE` names: `file:///folder` or `s3://bucket/prefix`. Opening it touches nothing."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        parts = urlsplit(self._url)
        self._kind: _Kind = (
            _Folder(Path(unquote(parts.path))) if parts.scheme == "file" else _Bucket(parts.netloc, parts.path)
        )

    def url(self, path: str) -> str:
        """The address of an object, as people read it."""
        return f"{self._url}/{path}"

    async def put(self, path: str, body: bytes) -> None:
        """Write an object, over an older one. Raises StoreAway."""
        async with self._bounded("write"):
            await self._kind.put(path, body)

    async def get(self, path: str, start: int = 0, end: int | None = None) -> bytes | None:
        """The bytes [start, end) of an object as far as it has them; None if there is no such object. Raises StoreAway.

        `end` None: to its end.
        """
        async with self._bounded("read"):
            return await self._kind.get(path, start, end)

    async def delete(self, paths: Iterable[str]) -> None:
        """Delete these objects; those that are not there are no error. Raises StoreAway; some may be gone then."""
        left = list(paths)
        while left:
            now, left = left[:_DELETED_AT_ONCE], left[_DELETED_AT_ONCE:]
            async with self._bounded("delete"):
                await self._kind.delete(now)

    async def check(self) -> None:
        """Write and delete a small object. Raises StoreAway."""
        await self.put(_CHECK, b"")
        await self.delete([_CHECK])

    @asynccontextmanager
    async def _bounded(self, doing: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(CALL_S):
                yield
        except (OSError, BaseError) as error:  # TimeoutError is an OSError
            line = f"{type(error).__name__}: {error}".partition("\n")[0]
            log.debug("store_away", store=self._url, doing=doing, problem=line)
            raise StoreAway(f"cannot {doing} in the log store {self._url}: {line[:300]}") from error


class _Folder:
    """Files that nobody but our user may read, in folders likewise."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def put(self, path: str, body: bytes) -> None:
        await asyncio.to_thread(self._put, path, body)

    async def get(self, path: str, start: int, end: int | None) -> bytes | None:
        return await asyncio.to_thread(self._get, path, start, end)

    async def delete(self, paths: list[str]) -> None:
        await asyncio.to_thread(self._delete, paths)

    def _put(self, path: str, body: bytes) -> None:
        target = self._root / path
        try:
            self._write(target, body)
        except FileNotFoundError:  # the folder is not there yet, or was empty and has just been taken away
            self._make(target.parent)
            self._write(target, body)

    @staticmethod
    def _write(target: Path, body: bytes) -> None:
        handle, written = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())  # what is in the store is soon nowhere else
            Path(written).replace(target)
        except BaseException:
            Path(written).unlink(missing_ok=True)
            raise

    @staticmethod
    def _make(folder: Path) -> None:
        missing = [one for one in (folder, *folder.parents) if not one.exists()]
        for one in reversed(missing):
            one.mkdir(mode=0o700, exist_ok=True)

    def _get(self, path: str, start: int, end: int | None) -> bytes | None:
        try:
            with (self._root / path).open("rb") as file:
                file.seek(start)
                return file.read() if end is None else file.read(max(end - start, 0))
        except FileNotFoundError:
            if not self._root.is_dir():  # not the object is missing, but all of them
                raise
            return None

    def _delete(self, paths: list[str]) -> None:
        for path in paths:
            target = self._root / path
            target.unlink(missing_ok=True)
            for folder in target.parents:
                if folder == self._root:
                    break
                try:
                    folder.rmdir()
                except OSError:  # not empty, or another one was first
                    break
        if not self._root.is_dir():
            raise FileNotFoundError(f"there is no folder {self._root}")


class _Bucket:
    """Objects below a prefix; who we are and where the service stands, obstore reads from the `AWS_` variables."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self._store = S3Store(
            bucket,
            prefix=prefix.strip("/") or None,
            # Plain HTTP is spoken only to an AWS_ENDPOINT_URL that says so.
            client_options={"timeout": "10s", "connect_timeout": "3s", "allow_http": True},
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=8)},
        )

    async def put(self, path: str, body: bytes) -> None:
        await obstore.put_async(self._store, path, body, use_multipart=False)

    async def get(self, path: str, start: int, end: int | None) -> bytes | None:
        try:
            if start == 0 and end is None:
                whole = await obstore.get_async(self._store, path)
                return bytes(await whole.bytes_async())
            if end is not None and end <= start:
                return b""
            size = (await obstore.head_async(self._store, path))["size"]  # what begins behind it is an error to S3
            end = size if end is None else min(end, size)
            if start >= end:
                return b""
            return bytes(await obstore.get_range_async(self._store, path, start=start, end=end))
        except FileNotFoundError:
            return None

    async def delete(self, paths: list[str]) -> None:
        with contextlib.suppress(FileNotFoundError):
            await obstore.delete_async(self._store, paths)
