"""Who of many does work that one at a time should do: a lease in the database, which others take over.

It saves work; correctness never hangs on it.
"""

import time
from contextlib import suppress
from typing import Final
from uuid import uuid4

import structlog

from app.database import AWAY, Database
from app.progress import queries

log = structlog.get_logger()

LEASE_S: Final = 5.0


class Turn:
    """One contender for the lease `lease_name` (`record:redis`); `name` says which process it is."""

    def __init__(self, database: Database, lease_name: str, name: str) -> None:
        self._database = database
        self.lease_name = lease_name
        self.holder = f"{name} {uuid4().hex[:8]}"
        self.held = False
        self._held_at = 0.0

    async def hold(self) -> bool:
        """Take the lease or renew it where that is due; whether we have it. Raises what the database raises."""
        if self.held and time.monotonic() - self._held_at < LEASE_S / 4:
            return True
        held_at = time.monotonic()
        async with self._database.transaction() as connection:
            held = await queries.hold_lease(connection, self.lease_name, self.holder, LEASE_S)
        if held != self.held:
            said = "recorder_took_over" if held else "recorder_stands_by"
            log.info(said, lease=self.lease_name, holder=self.holder)
        self.held, self._held_at = held, held_at
        return held

    async def give_back(self) -> None:
        """Let another one take over at once."""
        if self.held:
            self.held = False
            with suppress(*AWAY):
                async with self._database.transaction() as connection:
                    await queries.give_lease_back(connection, self.lease_name, self.holder)
