"""Reads what workers of ours say of themselves in Redis: also those that are busy, or cut from the broker."""

from collections.abc import Iterable

import orjson
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from app.catalogue.seen import Seen, of_presence
from workers.protocol import CONTRACTS_PREFIX, PRESENCE_PREFIX

#: What a worker may say of its tasks; nothing longer is read.
_CONTRACTS_LIMIT = 8 * 1024 * 1024


def _bytes(value: bytes | str | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


async def presences(redis: Redis) -> dict[str, Seen]:
    """The workers of ours that live, by node. Raises RedisError."""
    keys = [key async for key in redis.scan_iter(match=f"{PRESENCE_PREFIX}*", count=1000)]
    found: dict[str, Seen] = {}
    for key, value in zip(keys, await redis.mget(keys) if keys else (), strict=True):
        node = key.decode("utf-8", "replace").removeprefix(PRESENCE_PREFIX)
        seen = of_presence(node, _bytes(value))
        if seen is not None:
            found[node] = seen
    return found


async def contracts(redis: Redis, digests: Iterable[str]) -> dict[str, dict[str, dict[str, object]]]:
    """By digest, the contract of each task; a digest whose contracts are not there is left out. Raises RedisError."""
    found = {}
    for digest in set(digests):
        key = f"{CONTRACTS_PREFIX}{digest}"
        try:
            if await redis.strlen(key) > _CONTRACTS_LIMIT:
                continue
            value = _bytes(await redis.get(key))
        except ResponseError:  # no text stands there: the others have theirs
            continue
        said = _read(value) if value is not None else None
        if said is not None:
            found[digest] = said
    return found


def _read(value: bytes) -> dict[str, dict[str, object]] | None:
    """Contracts as the database can keep them; None if these are none."""
    if rb"\u0000" in value:
        return None
    try:
        said = orjson.loads(value)
        orjson.dumps(said)  # refuses what is nested too deeply
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    return {
        task: {name: contract.get(name) for name in ("signature", "schema", "doc")}
        for task, contract in said.items()
        if isinstance(contract, dict)
    }
