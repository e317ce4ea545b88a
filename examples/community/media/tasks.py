"""The media service's tasks. What a task works with is `self.context`, which the worker makes for each call."""

import asyncio
import gzip
import hashlib
import shutil
import time
from pathlib import Path
from typing import Any

from celery import shared_task
from sqlmodel import func, select

from media.context import Media
from media.models import File
from workers import progress, track

AT_ONCE = 2


@shared_task(bind=True)
def upload(self: Any, album: str) -> dict[str, Any]:
    """Take over the files of an album that came in: copied, hashed, and a row for each. Says after each file how far
    it is. A second upload leaves alone what has not changed."""
    media: Media = self.context
    files = sorted((media.settings.incoming / album).glob("[!.]*"))
    copied = 0
    for number, path in enumerate(files, 1):
        begin = time.monotonic()
        copied += _take_over(media, album, path)
        progress(number, len(files), path.name)
        time.sleep(max(media.settings.pace_s - (time.monotonic() - begin), 0))
    return {"album": album, "files": len(files), "copied": copied}


@shared_task(bind=True)
async def compress(self: Any, album: str) -> dict[str, Any]:
    """Compress the files of an album that were taken over, two at a time: a coroutine, on the worker's event loop."""
    media: Media = self.context
    names = media.session.exec(select(File.name).where(File.album == album).order_by(File.name)).all()
    places = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> int:
        async with places:
            work = asyncio.to_thread(_compress, media.settings.stored / album / name)
            return (await asyncio.gather(work, asyncio.sleep(media.settings.pace_s)))[0]

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(name)) for name in names]
        for task in track(tasks):
            await task
    return {"album": album, "files": len(names), "bytes": sum(task.result() for task in tasks)}


@shared_task(bind=True, name="community.report")
def report(self: Any) -> dict[str, Any]:
    """What the media service has. The forum has a task of the same name, on a queue of its own."""
    query = select(func.count(), func.coalesce(func.sum(File.size), 0)).select_from(File)
    files, size = self.context.session.exec(query).one()
    return {"service": "media", "files": files, "bytes": size}


def _take_over(media: Media, album: str, path: Path) -> bool:
    """Whether the file was new or had changed."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    row = media.session.get(File, (album, path.name))
    if row is not None and row.sha256 == digest:
        return False
    target = media.settings.stored / album / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{path.name}")
    shutil.copyfile(path, part)
    part.replace(target)
    media.session.merge(File(album=album, name=path.name, sha256=digest, size=path.stat().st_size))
    media.session.commit()
    return True


def _compress(path: Path) -> int:
    """Write `<name>.gz` beside the file; its size."""
    compressed = gzip.compress(path.read_bytes(), mtime=0)
    path.with_name(f"{path.name}.gz").write_bytes(compressed)
    return len(compressed)
