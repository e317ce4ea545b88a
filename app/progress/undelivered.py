"""Settles dead letters: messages that a queue of the plane's gave up, each the end of something and never a hole."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app import faults
from app.database import Database, clock
from app.progress import dead_letters, lease, queries, transition
from app.progress.dead_letters import DeadLetter
from app.progress.mailbox import Letter, Mailbox
from app.progress.recording import BODY_KEPT, Recording, Refused
from app.progress.standing import Move, Standing
from workers.protocol import REAPED, lease_key, parse_task_id

log = structlog.get_logger()

#: Celery rejects a message first and stores why second: so long the report has to come.
GRACE_S: Final = 2.0
#: Most dead letters that one pass settles.
BATCH: Final = 100


class Undelivered:
    """Call `run_once` again and again. What cannot be settled now (Redis or the database is away) is tried again."""

    def __init__(self, database: Database, redis: Redis, recording: Recording, mailbox: Mailbox) -> None:
        self._database = database
        self._redis = redis
        self._recording = recording
        self._mailbox = mailbox
        self._letters: list[Letter] = []
        self._again_at = 0.0

    async def run_once(self) -> None:
        """Settle what is ripe. Raises what the database raises: then nothing is acknowledged."""
        self._letters = [letter for letter in self._letters if self._mailbox.current(letter)]
        self._letters += self._mailbox.take(BATCH, BATCH * BODY_KEPT)
        now = asyncio.get_running_loop().time()
        if now < self._again_at:
            return
        ripe = [letter for letter in self._letters if now - letter.time >= _grace_s(letter)][:BATCH]
        if not ripe:
            return
        try:
            await self._settle(ripe)
        except RedisError as error:
            # Without Redis nobody knows who holds which lease.
            log.debug("dead_letters_wait", letters=len(ripe), error=str(error))
            self._again_at = now + 1
            return
        await self._mailbox.acknowledge(ripe)
        settled = {letter.tag for letter in ripe}
        self._letters = [letter for letter in self._letters if letter.tag not in settled]

    async def _settle(self, letters: Sequence[Letter]) -> None:
        dead: list[tuple[Letter, DeadLetter]] = []
        refused: list[Refused] = []
        foreign = 0
        for letter in letters:
            task_id = parse_task_id(letter.task_id) or parse_task_id(str(letter.headers.get("id")))
            if task_id is None:
                foreign += 1
            elif died := dead_letters.read(task_id, letter.headers):
                dead.append((letter, died))
            else:
                refused.append((str(task_id), "no dead letter: no x-death in its headers", letter.body[:BODY_KEPT]))
        if foreign:
            log.warning("foreign_dead_letter", letters=foreign, task_id=letters[0].task_id[:100])
        wanted = await self._wanted([died for _, died in dead], refused)
        async with self._database.transaction() as connection:
            now = await clock(connection)
            moves: defaultdict[UUID, list[Move]] = defaultdict(list)
            for died in wanted:
                moves[died.task_id.run_id].append(dead_letters.settle(now, died))
            rows = await transition.apply(connection, now, moves)
            await self._recording.refuse(connection, refused)
            await faults.at("record.before_commit")
        await faults.at("record.after_commit")
        for row in rows:
            log.info("dead_letter_settled", run_id=str(row["id"]), state=row["state"], reason=row["reason"])
        await self._recording.tell(rows)

    async def _wanted(self, dead: Sequence[DeadLetter], refused: list[Refused]) -> list[DeadLetter]:
        """Those that may change their run: for one that ends an attempt, the lease is taken, and nobody had it."""
        if not dead:
            return []
        async with self._database.reading() as connection:
            standings = await queries.standings(connection, [died.task_id.run_id for died in dead])
        wanted: list[DeadLetter] = []
        for died in dead:
            standing = standings.get(died.task_id.run_id)
            if standing is None:
                refused.append((str(died.task_id), f"no such run; its message was {died.reason}", b""))
            elif not dead_letters.ends(standing, died) or await self._take(standing):
                wanted.append(died)
        return wanted

    async def _take(self, standing: Standing) -> bool:
        key = lease_key(standing.id, standing.attempt, standing.retries)
        stands = await lease.take(self._redis, key, REAPED, held_too=False)
        if stands is not None:
            log.info("dead_letter_left_to_the_lease", run_id=str(standing.id), lease=stands[:100])
        return stands is None


def _grace_s(letter: Letter) -> float:
    deaths = letter.headers.get("x-death")
    last = deaths[0] if isinstance(deaths, list) and deaths else None
    rejected = isinstance(last, dict) and last.get("reason") == dead_letters.REJECTED
    return GRACE_S if rejected else 0
