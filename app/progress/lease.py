"""The plane's side of a lease: taking it, so that no later word or delivery of that attempt counts.

Whoever ends an attempt from outside (reaper, cancel) takes the key first and writes the row second: a crash in between
leaves a key that only refuses, and the next pass writes the row.
"""

from redis.asyncio import Redis

from workers.protocol import HELD, LEASE_MEMORY_S

# Free, or no lease at all (another type of value): set. Held and `held_too`: replace. Ours already: taken.
# Else: answer what stands.
_TAKE = """
local now = false
if redis.call('TYPE', KEYS[1]).ok == 'string' then now = redis.call('GET', KEYS[1]) end
if now == false or now == ARGV[1] or (ARGV[3] == '1' and string.sub(now, 1, string.len(ARGV[4])) == ARGV[4]) then
    redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
    return false
end
return now
"""


async def take(redis: Redis, key: str, value: str, *, held_too: bool) -> str | None:
    """Set a lease to `value` (`REAPED`, `CANCELLED`) if it is free, or held and `held_too`.

    None: taken, also if it had this value already. Otherwise the value that stands, and nothing was changed. Raises
    `redis.exceptions.RedisError` if Redis is away: then nothing is known, and nothing may be written.
    """
    stands = await redis.eval(_TAKE, 1, key, value, str(LEASE_MEMORY_S), "1" if held_too else "0", HELD)
    if stands is None:
        return None
    return stands.decode() if isinstance(stands, bytes) else str(stands)
