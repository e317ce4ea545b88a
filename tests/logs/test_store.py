"""The log store: the same promises of a folder and of an imitation of S3."""

import asyncio
from pathlib import Path
from uuid import UUID

import pytest

from app.database import Database, new_id
from app.logs import place
from app.logs.store import Store, StoreAway

PATH = "2026/11/22/a run/1.log"


async def test_what_is_put_is_got_whole_or_in_part(store: Store) -> None:
    await store.put(PATH.replace("1.log", "2.log"), b"another")
    assert await store.get(PATH) is None
    await store.put(PATH, b"first")
    await store.put(PATH, b"0123456789")
    assert await store.get(PATH) == b"0123456789"
    assert await store.get(PATH, 3, 6) == b"345"
    assert await store.get(PATH, 8, 100) == b"89"
    assert await store.get(PATH, 8) == b"89"
    for start, end in ((4, 4), (10, 12), (20, 30), (30, None)):
        assert await store.get(PATH, start, end) == b""
    assert await store.get("2026/11/22/other/1.log", 5, 7) is None


async def test_nothing_can_be_put(store: Store) -> None:
    await store.put(PATH, b"")
    assert await store.get(PATH) == b""


async def test_deleting_takes_what_is_there(store: Store) -> None:
    other = PATH.replace("1.log", "2.log")
    for path in (PATH, other):
        await store.put(path, b"x")
    await store.delete([PATH, "no/such/1.log"])
    assert await store.get(PATH) is None
    assert await store.get(other) == b"x"
    await store.delete([PATH, other])
    await store.delete([])
    assert await store.get(other) is None


async def test_check_leaves_nothing(store: Store) -> None:
    await store.check()
    await store.put(PATH, b"")
    assert await store.get(".jobplane") is None


async def test_a_reader_never_finds_half_an_object(store: Store) -> None:
    bodies = [bytes([byte]) * 200_000 for byte in b"ab"]
    await store.put(PATH, bodies[0])
    done = asyncio.Event()

    async def write() -> None:
        for n in range(20):
            await store.put(PATH, bodies[n % 2])
        done.set()

    writing = asyncio.create_task(write())
    while not done.is_set():
        assert await store.get(PATH) in bodies
    await writing


async def test_files_are_private_and_empty_folders_go(folder_store: Store, folder: Path) -> None:
    await folder_store.put(PATH, b"x")
    for path in (folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    await folder_store.delete([PATH])
    assert folder.is_dir()
    assert list(folder.iterdir()) == []


async def test_a_folder_that_is_away_is_named(folder_store: Store, folder: Path) -> None:
    await folder_store.put(PATH, b"x")
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(StoreAway, match="folder"):
        await folder_store.get(PATH)
    with pytest.raises(StoreAway, match="folder"):
        await folder_store.delete([PATH])
    folder.write_text("no folder any more")
    with pytest.raises(StoreAway, match=r"cannot write in the log store file:///.*folder"):
        await folder_store.put(PATH, b"x")
    with pytest.raises(StoreAway, match="folder"):
        await folder_store.get(PATH)
    folder.unlink()
    folder.with_name("elsewhere").rename(folder)
    assert await folder_store.get(PATH) == b"x"


async def test_a_bucket_that_is_not_there_is_named(imitated_s3: str) -> None:
    with pytest.raises(StoreAway, match="s3://nothere/logs"):
        await Store("s3://nothere/logs").put(PATH, b"x")


async def test_an_imitation_of_s3_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    store = Store("s3://logs/prefix")
    with pytest.raises(StoreAway, match="s3://logs/prefix"):
        await store.put(PATH, b"x")


async def test_python_and_sql_name_the_same_place(database: Database) -> None:
    for run_id in (new_id(), UUID("019aa8d2-5bff-7000-8000-000000000001"), UUID(int=7 << 76)):
        async with database.reading() as connection:
            folder = await connection.fetchval(
                f"SELECT {place.FOLDER_SQL} FROM (SELECT $1::uuid AS id) AS run",
                run_id,
            )
        assert place.log_of(run_id, 3) == f"{folder}/3.log"
        assert place.result_of(run_id) == f"{folder}/result.json"
