"""From the stream into the store: what is sealed, when, and what happens while a part is away."""

import asyncio
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis

from app.database import Database, new_id
from app.logs import place, rhythm, seal
from app.logs.read import read
from app.logs.rhythm import Unsealed, is_complete, is_due, pause_s
from app.logs.seal import Sealer
from app.logs.store import Store, StoreAway
from tests.logs.streams import over, sealed_row, whole, write
from tests.progress.live import make_run
from workers.protocol import LOG_HEAD, LOG_TAIL, LOGS_KEY, log_key

MIB = 2**20


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass looks at every log and writes what is new."""
    monkeypatch.setattr(seal, "_LOOK_AGAIN_S", 0)
    monkeypatch.setattr(rhythm, "LEAST_S", 0)
    monkeypatch.setattr(rhythm, "MOST_S", 0)
    monkeypatch.setattr(rhythm, "LOGS_PER_S", 1e9)


@pytest.fixture
def _trimmed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal, "_TRIM_AFTER_S", 0)


def sealer_of(database: Database, redis: Redis, store: Store) -> Sealer:
    return Sealer(database, redis, store, "test")


async def pass_all(sealer: Sealer) -> None:
    while await sealer.run_once():
        pass


async def listed(redis: Redis) -> set[bytes]:
    return set(await redis.zrange(LOGS_KEY, 0, -1))


@pytest.mark.usefixtures("_at_once")
async def test_a_log_grows_in_the_store_and_leaves_redis(database: Database, redis: Redis, store: Store) -> None:
    run_id = await make_run(database)
    sealer = sealer_of(database, redis, store)
    path = place.log_of(run_id, 1)
    end = await write(redis, run_id, b"one\n", 0)
    await pass_all(sealer)
    assert await store.get(path) == b"one\n"
    end = await write(redis, run_id, b"two\n", end)
    assert await whole(database, redis, store, run_id) == (
        "one\ntwo\n",
        await read(database, redis, store, run_id, 1, 8),
    )
    await pass_all(sealer)
    await write(redis, run_id, "drei é\n".encode(), end, last=True)
    await over(database, run_id)
    await pass_all(sealer)
    text = "one\ntwo\ndrei é\n"
    assert await store.get(path) == text.encode()
    row = await sealed_row(database, run_id)
    assert row is not None
    assert (row["segments"], row["size"], row["ended"]) == ([[0, len(text.encode()), 0]], len(text.encode()), True)
    assert await listed(redis) == set()
    assert 0 < await redis.ttl(log_key(run_id, 1)) <= 300
    await redis.delete(log_key(run_id, 1))
    shown, chunk = await whole(database, redis, store, run_id)
    assert (shown, chunk.ended, chunk.next) == (text, True, len(text.encode()))


@pytest.mark.usefixtures("_at_once")
async def test_of_a_long_log_head_and_newest_tail_are_kept(database: Database, redis: Redis, store: Store) -> None:
    run_id = await make_run(database)
    sealer = sealer_of(database, redis, store)
    line = b"%099d\n"
    end = 0
    for part in range(8):
        if part == 7:  # as the worker cuts beyond the head
            end += 5 * MIB
        text = b"".join(line % (end // 100 + n) for n in range(2500))
        end = await write(redis, run_id, text, end, last=part == 7)
        await sealer.run_once()
    await over(database, run_id)
    await pass_all(sealer)
    body = await store.get(place.log_of(run_id, 1))
    assert body is not None
    head_end = (LOG_HEAD // 100 + 1) * 100
    tail_begin = end - LOG_TAIL // 100 * 100
    assert body[:head_end] == b"".join(line % n for n in range(head_end // 100))
    rest = body[head_end:]
    mark = b"[jobplane: %d bytes cut here]\n" % (tail_begin - head_end)
    assert rest.startswith(mark)
    assert rest[len(mark) :].splitlines()[0].isdigit()
    assert len(rest) == len(mark) + LOG_TAIL // 100 * 100
    shown, chunk = await whole(database, redis, store, run_id, limit=300_000)
    assert shown.encode() == body
    assert (chunk.next, chunk.ended) == (end, True)
    middle = await read(database, redis, store, run_id, 1, tail_begin + 200, 150)
    assert (middle.offset, middle.next - middle.offset) == (tail_begin + 200, 100)
    cut = await read(database, redis, store, run_id, 1, tail_begin - 1000, 150)
    assert cut.text.startswith("[jobplane: 1000 bytes cut here]\n0")


@pytest.mark.usefixtures("_at_once")
async def test_a_killed_workers_log_is_complete_after_a_while(
    database: Database, redis: Redis, folder_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await make_run(database)
    sealer = sealer_of(database, redis, folder_store)
    await write(redis, run_id, b"what it said\n", 0)
    await over(database, run_id, 5)
    monkeypatch.setattr(rhythm, "SILENCE_S", 600)
    await pass_all(sealer)
    row = await sealed_row(database, run_id)
    assert row is not None
    assert not row["ended"]
    assert not (await read(database, redis, folder_store, run_id)).ended
    assert len(await listed(redis)) == 1
    monkeypatch.setattr(rhythm, "SILENCE_S", 4)
    await pass_all(sealer)
    await pass_all(sealer)
    assert await listed(redis) == set()
    chunk = await read(database, redis, folder_store, run_id)
    assert (chunk.text, chunk.ended) == ("what it said\n", True)


@pytest.mark.usefixtures("_at_once")
async def test_an_earlier_attempt_is_complete_while_the_run_goes_on(
    database: Database, redis: Redis, folder_store: Store
) -> None:
    past = [{"attempt": 1, "state": "FAILURE", "end_time": "2026-01-01T00:00:00Z"}]
    run_id = await make_run(database, attempt=2, attempts=past)
    await write(redis, run_id, b"first try\n", 0)
    await write(redis, run_id, b"second try\n", 0, 2)
    await pass_all(sealer_of(database, redis, folder_store))
    assert await listed(redis) == {f"{run_id}:2".encode()}
    first = await read(database, redis, folder_store, run_id, 1)
    newest = await read(database, redis, folder_store, run_id)
    assert (first.text, first.ended, first.attempt) == ("first try\n", True, 1)
    assert (newest.text, newest.ended, newest.attempt) == ("second try\n", False, 2)


@pytest.mark.usefixtures("_at_once")
async def test_a_store_that_is_away_loses_nothing(
    database: Database, redis: Redis, folder_store: Store, folder: Path
) -> None:
    run_ids = [await make_run(database) for _ in range(3)]
    sealer = sealer_of(database, redis, folder_store)
    for run_id in run_ids:
        await write(redis, run_id, b"before\n", 0)
    await pass_all(sealer)
    folder.rename(folder.with_name("elsewhere"))
    folder.write_text("in the way")
    for run_id in run_ids:
        await write(redis, run_id, b"meanwhile\n", 7)
    for _ in range(3):
        with pytest.raises(StoreAway, match="folder"):
            await sealer.run_once()
    assert (await read(database, redis, folder_store, run_ids[0], 1, 7)).text == "meanwhile\n"
    with pytest.raises(StoreAway):
        await read(database, redis, folder_store, run_ids[0], 1, 6)
    folder.unlink()
    folder.with_name("elsewhere").rename(folder)
    for run_id in run_ids:
        await write(redis, run_id, b"after\n", 17, last=True)
        await over(database, run_id)
    await pass_all(sealer)
    for run_id in run_ids:
        assert await folder_store.get(place.log_of(run_id, 1)) == b"before\nmeanwhile\nafter\n"
    assert await listed(redis) == set()


@pytest.mark.usefixtures("_at_once")
async def test_one_object_that_cannot_be_written_stops_no_other(
    database: Database, redis: Redis, folder_store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal, "_AT_ONCE", 1)
    run_ids = [await make_run(database) for _ in range(4)]
    (folder / place.log_of(run_ids[0], 1) / "in the way").mkdir(parents=True)
    for run_id in run_ids:
        await write(redis, run_id, b"text\n", 0)
    sealer = sealer_of(database, redis, folder_store)
    for _ in range(2):
        with pytest.raises(StoreAway):
            await sealer.run_once()
    assert [await sealed_row(database, run_id) is not None for run_id in run_ids] == [False, True, True, True]


async def odd_entries(redis: Redis, run_id: UUID) -> None:
    key = log_key(run_id, 1)
    odd: list[dict[str, Any]] = [
        {"x": "y"},
        {"o": "nine", "t": "bad offset\n"},
        {"o": "-1", "t": "bad offset\n"},
        {"o": "6", "t": b"\xff\xfe\n"},
        {"o": "2", "t": "st\nnew\n"},
        {"o": "100", "t": "x" * 300_000},
        {"o": "0", "t": "old\n"},
        {"o": "9" * 15, "t": ""},
    ]
    for fields in odd:
        await redis.xadd(key, fields)


@pytest.mark.usefixtures("_at_once")
async def test_strangers_bytes_stop_nothing(database: Database, redis: Redis, folder_store: Store) -> None:
    odd, good, of_type, empty, gone = [await make_run(database) for _ in range(4)] + [new_id()]
    await write(redis, odd, b"first\n", 0)
    await odd_entries(redis, odd)
    await redis.set(log_key(of_type, 1), "no stream")
    await redis.xadd(log_key(empty, 1), {"nothing": "x"})
    await write(redis, gone, b"of nobody\n", 0)
    await write(redis, good, b"future attempt\n", 0, attempt=7)
    names: list[Any] = [b"\xff", "", ":", f"{good}:0", f"{good}:1:1", "x" * 5000, f"{of_type}:1", f"{empty}:1"]
    await redis.zadd(LOGS_KEY, dict.fromkeys([*names, f"{good}:99999999999"], 1))
    await write(redis, good, b"good\n", 0)
    sealer = sealer_of(database, redis, folder_store)
    for _ in range(3):
        await pass_all(sealer)
    assert (await read(database, redis, folder_store, good)).text == "good\n"
    text, _ = await whole(database, redis, folder_store, odd)
    assert text.startswith("first\n??\n[jobplane: 91 bytes cut here]\nxxx")
    assert len(text) > 256 * 1024
    assert await listed(redis) == {f"{one}:1".encode() for one in (odd, good, of_type, empty)}
    assert not await redis.exists(log_key(gone, 1))
    for one in (of_type, empty):
        assert (await read(database, redis, folder_store, one)).text == ""
        await over(database, one, 60)
    await pass_all(sealer)
    await pass_all(sealer)
    assert await listed(redis) == {f"{one}:1".encode() for one in (odd, good)}


@pytest.mark.usefixtures("_at_once", "_trimmed_at_once")
async def test_what_is_sealed_is_trimmed_but_the_last_entry(
    database: Database, redis: Redis, folder_store: Store
) -> None:
    run_id = await make_run(database)
    sealer = sealer_of(database, redis, folder_store)
    end = 0
    for _ in range(5):
        end = await write(redis, run_id, b"line\n", end)
        await pass_all(sealer)
    assert await redis.xlen(log_key(run_id, 1)) == 1
    assert (await whole(database, redis, folder_store, run_id))[0] == "line\n" * 5


@pytest.mark.usefixtures("_at_once", "_trimmed_at_once")
async def test_a_reader_beside_the_sealer_reads_each_byte_once(
    database: Database, redis: Redis, folder_store: Store
) -> None:
    run_id = await make_run(database)
    sealer = sealer_of(database, redis, folder_store)
    done = asyncio.Event()
    written = b"".join(b"%05d\n" % n for n in range(1500))

    async def produce() -> None:
        for begin in range(0, len(written), 60):
            await write(redis, run_id, written[begin : begin + 60], begin)
        done.set()

    async def sealing() -> None:
        while not done.is_set():
            await sealer.run_once()

    async def follow() -> str:
        text, offset = "", 0
        while offset < len(written):
            chunk = await read(database, redis, folder_store, run_id, None, offset, 1000)
            text, offset = text + chunk.text, chunk.next
        return text

    text, *_ = await asyncio.wait_for(asyncio.gather(follow(), produce(), sealing()), 60)
    assert text.encode() == written


@pytest.mark.usefixtures("_at_once")
async def test_an_older_object_put_over_ours_is_mended(database: Database, redis: Redis, folder_store: Store) -> None:
    """A scheduler that froze while it wrote, and went on after another one had taken over."""
    run_id = await make_run(database)
    path = place.log_of(run_id, 1)
    sealer = sealer_of(database, redis, folder_store)
    end = await write(redis, run_id, b"one\n", 0)
    await pass_all(sealer)
    old = await folder_store.get(path)
    assert old is not None
    end = await write(redis, run_id, b"two\n", end)
    await pass_all(sealer)
    await folder_store.put(path, old)
    await write(redis, run_id, b"three\n", end, last=True)
    await over(database, run_id)
    await pass_all(sealer)
    assert await folder_store.get(path) == b"one\ntwo\nthree\n"


@pytest.mark.usefixtures("_at_once")
async def test_one_scheduler_seals_and_another_takes_over(
    database: Database, redis: Redis, folder_store: Store
) -> None:
    run_id = await make_run(database)
    first, second = (sealer_of(database, redis, folder_store) for _ in range(2))
    end = await write(redis, run_id, b"one\n", 0)
    await pass_all(first)
    end = await write(redis, run_id, b"two\n", end)
    await pass_all(second)
    assert await folder_store.get(place.log_of(run_id, 1)) == b"one\n"
    await first.close()
    await pass_all(second)
    assert await folder_store.get(place.log_of(run_id, 1)) == b"one\ntwo\n"


@pytest.mark.usefixtures("_at_once")
async def test_a_run_that_goes_meanwhile_is_forgotten(database: Database, redis: Redis, folder_store: Store) -> None:
    run_id = await make_run(database)
    sealer = sealer_of(database, redis, folder_store)
    end = await write(redis, run_id, b"one\n", 0)
    await pass_all(sealer)
    async with database.transaction() as connection:
        await connection.execute("DELETE FROM runs WHERE id = $1", run_id)
    await write(redis, run_id, b"two\n", end)
    await pass_all(sealer)
    assert await listed(redis) == set()
    assert not await redis.exists(log_key(run_id, 1))


def test_larger_objects_are_written_less_often() -> None:
    assert pause_s(0, 1) == pause_s(60_000, 500) == 2
    assert pause_s(LOG_HEAD // 2, 1) == 15
    assert pause_s(LOG_HEAD * 2, 1) == 30
    assert pause_s(0, 5000) == 20


@pytest.mark.parametrize(
    ("sealed", "end", "size", "ago_s", "complete", "due"),
    [
        (0, 10, 0, None, False, True),
        (10, 20, 10, 1.9, False, False),
        (10, 20, 10, 2.0, False, True),
        (10, 20, 10, 0.1, True, True),
        (10, 10 + 256 * 1024, 10, 0.1, False, True),
        (LOG_HEAD, 10 * LOG_HEAD, LOG_HEAD, 0.1, False, False),
        (LOG_HEAD, 10 * LOG_HEAD, LOG_HEAD, 31, False, True),
        (LOG_HEAD // 2, LOG_HEAD // 2 + 100, LOG_HEAD // 2, 10, False, False),
    ],
)
def test_when_a_log_is_written(
    sealed: int, end: int, size: int, ago_s: float | None, complete: bool, due: bool
) -> None:
    assert is_due(Unsealed(sealed, end, size, ago_s, 1, complete)) is due


@pytest.mark.parametrize(
    ("over_s", "last", "complete"),
    [(None, True, False), (None, False, False), (0.0, True, True), (9.9, False, False), (10.0, False, True)],
)
def test_when_a_log_is_complete(over_s: float | None, last: bool, complete: bool) -> None:
    assert is_complete(over_s, last) is complete


@pytest.mark.long
async def test_five_thousand_live_logs(database: Database, redis: Redis, folder_store: Store) -> None:
    run_ids = [await make_run(database) for _ in range(5000)]
    sealer = sealer_of(database, redis, folder_store)
    for offset in (0, 5):
        for run_id in run_ids:
            await write(redis, run_id, b"line\n", offset)
        begin = time.monotonic()
        longest, passes, more = 0.0, 0, True
        while more:
            at = time.monotonic()
            more = await sealer.run_once()
            longest, passes = max(longest, time.monotonic() - at), passes + 1
        print(f"{passes} passes, the longest {longest:.2f} s, together {time.monotonic() - begin:.2f} s")
    assert longest < 10
    last = await folder_store.get(place.log_of(run_ids[-1], 1))
    assert last is not None
    assert last.startswith(b"line\n")


async def test_what_somebody_took_out_of_the_store_is_told_as_cut(
    database: Database, redis: Redis, tmp_path: Path
) -> None:
    store, run_id = Store(tmp_path.as_uri()), await make_run(database)
    await write(redis, run_id, b"one\ntwo\n", 0, last=True)
    await over(database, run_id)
    await pass_all(sealer_of(database, redis, store))
    path = tmp_path / place.log_of(run_id, 1)
    path.write_bytes(b"one\n")
    assert (await read(database, redis, store, run_id)).text == "one\n[jobplane: 4 bytes cut here]\n"
    path.unlink()
    chunk = await read(database, redis, store, run_id)
    assert (chunk.text, chunk.next, chunk.ended) == ("[jobplane: 8 bytes cut here]\n", 8, True)
