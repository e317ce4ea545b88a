"""Start the servers, run each benchmark, print what it measured."""

import asyncio
import shutil
import tempfile
from pathlib import Path

from app import log
from app.embedded import Postgres, Valkey
from app.migrate import upgrade
from app.settings import Settings
from benchmarks import firing, following, overhead


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="jobplane-bench-"))
    folder.chmod(0o755)  # as root, PostgreSQL is another user
    postgres, valkey = Postgres(folder, system_root=folder / "system"), Valkey(folder)
    try:
        postgres.start()
        valkey.start()
        upgrade(postgres.url)
        settings = Settings.load(
            database_url=postgres.url, redis_url=valkey.url, broker_url=valkey.url, log_level="warning"
        )
        log.configure(settings, "bench")
        ours = asyncio.run(firing.ours(settings))
        peer = firing.celery_beat(valkey.url)
        our_task, stock_task, told = overhead.overhead(valkey.url)
        known = following.following(valkey.url, folder / "up")
    finally:
        valkey.stop()
        postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"firing: {firing.ENTRIES:,} entries that fall due at once, until their messages are in Valkey")
    for measured in (ours, peer):
        print(
            f"  {measured.who:<44} {measured.fires:>6,} in {measured.seconds:6.2f} s  {measured.rate:>8,.0f} a second"
        )
    print(f"  ratio {ours.rate / peer.rate:.1f}")
    print(f"a task that does nothing: {overhead.CALLS:,} calls by one solo worker, median of {overhead.ROUNDS} rounds")
    for call in (our_task, stock_task):
        print(f"  {call.who:<44} {call.ms:6.2f} ms a call")
    print(f"  we add {our_task.ms - stock_task.ms:.2f} ms")
    print(f"{overhead.TOLD:,} calls in one task")
    print(f"  progress {told.progress_s:.2f} s, track {told.track_s:.2f} s")
    print(
        f"from asking for a run until its end is known: {following.RUNS} runs of a task that does nothing, one by one"
    )
    for waited in (known.first, known.all, known.peer):
        print(f"  {waited.who:<44} median {waited.median:6.0f} ms, worst {waited.worst:6.0f} ms")
    first, last = (waited.median / known.peer.median for waited in (known.first, known.all))
    print(f"  ratio of the first {first:.1f}, of the last {last:.1f}")
    print(f"jobplane up: serves after {known.start_s:.1f} s, and after {known.again_s:.1f} s again")
    print(f"  stops in {known.stop_s:.1f} s")


if __name__ == "__main__":
    main()
