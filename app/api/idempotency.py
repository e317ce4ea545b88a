"""`Idempotency-Key`: the same key gives the same answer, and its effect happens once.

The key's row is written in the transaction of the effect. A second request with the key waits on that row: if the first
one commits, its answer is given again; if it fails, the second one takes its place. Only successes are kept.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import Depends, Header, Request

from app.api.caller import CallerOf
from app.database import Connection
from app.errors import Invalid

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"


@dataclass(frozen=True, slots=True)
class Key:
    """A caller's key for one operation, with the hash of the body that it came with."""

    caller: str
    operation: str
    key: str
    body_hash: bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """What was answered the first time."""

    status: int
    headers: dict[str, str]
    body: bytes


async def key_of(
    request: Request,
    caller: CallerOf,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            description="the same key gives the same answer for a day; with another body it is refused (422)",
        ),
    ] = None,
) -> Key | None:
    """The key of this request, if it has one."""
    if idempotency_key is None:
        return None
    body = await request.json() if await request.body() else None
    digest = hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).digest()
    return Key(caller.name, f"{request.method} {request.url.path}", idempotency_key, digest)


KeyOf = Annotated[Key | None, Depends(key_of)]


async def claim(connection: Connection, key: Key) -> Kept | None:
    """Take the key for this transaction, or give what was answered before. Waits for another that has it.

    Invalid if the key was used with another body.
    """
    taken = await connection.fetchval(
        """
        INSERT INTO idempotency_keys (caller, operation, key, body_hash, status, headers, body)
        VALUES ($1, $2, $3, $4, 0, '{}', '{}') ON CONFLICT DO NOTHING RETURNING true
        """,
        key.caller,
        key.operation,
        key.key,
        key.body_hash,
    )
    if taken:
        return None
    row = await connection.fetchrow(
        """
        SELECT body_hash, status, headers, body FROM idempotency_keys
        WHERE caller = $1 AND operation = $2 AND key = $3
        """,
        key.caller,
        key.operation,
        key.key,
    )
    if row is None:  # expired between the two statements
        return await claim(connection, key)
    if row["body_hash"] != key.body_hash:
        raise Invalid.field(HEADER, "was used before with another body; take a new key for a new request")
    return Kept(row["status"], row["headers"], row["body"]["text"].encode())


async def keep(connection: Connection, key: Key, status: int, headers: dict[str, str], body: bytes) -> None:
    """Store the answer under the key that this transaction claimed. As text, for jsonb would order its members anew."""
    kept: dict[str, Any] = {"text": body.decode()}
    await connection.execute(
        """
        UPDATE idempotency_keys SET status = $4, headers = $5, body = $6
        WHERE caller = $1 AND operation = $2 AND key = $3
        """,
        key.caller,
        key.operation,
        key.key,
        status,
        headers,
        kept,
    )
