"""`jobplane doctor` on real parts: nothing on a sound plane, and each of the faults that are planted in it."""

import os
import signal
import time

import pytest
import redis

from app.embedded import Valkey, free_port
from tests.doctor.conftest import Rig

SERVICE_QUEUE = "svc"


@pytest.mark.long
def test_faults_are_found_on_redis_and_nothing_on_a_sound_plane(rig: Rig, own_valkey: Valkey) -> None:
    scheduler = rig.plane.scheduler()
    rig.plane.worker()
    rig.job("files.digest", "default")
    assert rig.sound() == (0, [])

    scheduler.stop()
    plant(rig, own_valkey)
    server = f"redis 127.0.0.1:{own_valkey.port}"
    planted = {
        ("redis_evicts", server),
        ("redis_not_kept", server),
        ("migrations", "database"),
        ("no_scheduler", "schedulers"),
        ("log_store", "file:///proc/nowhere"),
        ("queue_not_consumed", "queue nobody"),
        ("queue_in_trouble", "queue nobody"),
        ("task_not_registered", f"queue {SERVICE_QUEUE}"),
        ("visibility_short", "worker bad@test"),
        ("prefetch_long", "worker bad@test"),
        ("limit_not_kept", "worker bad@test"),
        ("track_started_off", "worker bad@test"),
        ("result_extended_off", "worker bad@test"),
        ("results_elsewhere", "worker bad@test"),
        ("results_expire", "worker bad@test"),
        ("thief_waiting", "worker thief@test"),
        ("rejects_lost", "worker thief@test"),
        ("results_unreadable", "worker thief@test"),
        ("results_not_json", "worker thief@test"),
        ("node_twice", "worker thief@test"),
    }
    status, found = rig.finds(planted, JOBPLANE_LOG_STORE="file:///proc/nowhere")
    assert status == 1
    by_code: dict[tuple[str, str], str] = {(one["code"], one["subject"]): one["says"] for one in found}
    assert planted <= by_code.keys(), planted - by_code.keys()
    # What is sound is not complained of.
    assert not [subject for _, subject in by_code if subject.startswith("worker w@")], by_code
    assert ("acks_early", "worker bad@test") not in by_code
    assert "svc.unheard_of" in by_code["task_not_registered", f"queue {SERVICE_QUEUE}"]
    assert "database 3" in by_code["results_elsewhere", "worker bad@test"]
    assert all(set(one) == {"code", "level", "subject", "says", "do"} for one in found)

    # Without its database, the rest is looked at all the same.
    away = f"postgresql+asyncpg://jobplane:x@127.0.0.1:{free_port()}/jobplane"
    status, found = rig.finds({("node_twice", "worker thief@test")}, JOBPLANE_DATABASE_URL=away)
    assert status == 2
    codes = {one["code"] for one in found}
    assert {"database_away", "redis_evicts", "redis_not_kept", "node_twice", "track_started_off"} <= codes
    assert not codes & {"no_scheduler", "migrations", "queue_not_consumed"}, "what is not known is not said"


def plant(rig: Rig, valkey: Valkey) -> None:
    """A Valkey that forgets, queues and jobs without workers, and two stock services of bad manners."""
    with redis.Redis.from_url(valkey.url) as client:
        client.config_set("maxmemory", "200mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendonly", "no")
    rig.queue("nobody", problem="PRECONDITION_FAILED - inequivalent arg")
    rig.queue(SERVICE_QUEUE)
    rig.job("svc.orders", "nobody")
    rig.job("svc.unheard_of", SERVICE_QUEUE)
    rig.job("svc.posts", SERVICE_QUEUE, time_limit_s=7200)
    rig.execute("UPDATE alembic_version SET version_num = '0001'")
    other_database = f"{valkey.url.rpartition('/')[0]}/3"
    rig.stock(
        "bad",
        SERVICE_QUEUE,
        "svc.posts",
        backend=other_database,
        result_expires=10,
        task_acks_late=True,
        broker_transport_options={"visibility_timeout": 600},
    )
    for _ in range(2):
        rig.stock(
            "thief",
            "default",
            "svc.other",
            backend=None,
            task_acks_late=True,
            task_reject_on_worker_lost=True,
            result_serializer="pickle",
        )
    rig.ready()


@pytest.mark.long
def test_faults_are_found_on_rabbitmq_and_nothing_on_a_sound_plane(amqp_rig: Rig) -> None:
    rig = amqp_rig
    rig.plane.scheduler()
    rig.plane.worker()
    rig.job("files.digest", "default", time_limit_s=600)
    assert rig.sound() == (0, [])

    rig.stock("early", "early", "svc.early", backend="rpc://", result_extended=True, pool="threads")
    rig.stock("mute", "mute", "svc.mute", backend="rpc://", worker_enable_remote_control=False, pool="threads")
    rig.stock("picky", "picky", "svc.picky", backend="db+sqlite://", accept_content=["pickle"], pool="threads")
    for queue in ("early", "mute", "picky"):
        rig.queue(queue)
        rig.job(f"svc.{queue}", queue)
    rig.queue("long", consumer_timeout_s=3600)
    rig.job("svc.long", "long", time_limit_s=3600)
    rig.job("svc.longer", "default", time_limit_s=7200)
    rig.ready()
    planted = {
        ("consumer_timeout_short", "queue long"): "error",
        ("consumer_timeout_short", "queue default"): "warning",
        # It is not even there.
        ("queue_not_consumed", "queue long"): "error",
        ("task_not_registered", "queue default"): "error",
        ("acks_early", "worker early@test"): "warning",
        ("track_started_off", "worker early@test"): "warning",
        ("worker_silent", "worker mute@test"): "warning",
        ("worker_silent", "worker picky@test"): "warning",
        ("consumer_unknown", "queue mute"): "note",
        ("consumer_unknown", "queue picky"): "note",
    }
    status, found = rig.finds(planted)
    assert status == 1
    codes = {(one["code"], one["subject"]): one["level"] for one in found}
    assert planted.items() <= codes.items(), planted.items() - codes.items()
    assert ("result_extended_off", "worker early@test") not in codes


@pytest.mark.long
def test_a_redis_that_says_nothing_is_told_in_time(rig: Rig, own_valkey: Valkey) -> None:
    assert own_valkey.pid is not None
    os.kill(own_valkey.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        status, found = rig.doctor()
        took = time.monotonic() - began
    finally:
        os.kill(own_valkey.pid, signal.SIGCONT)
    assert status == 2
    assert {"redis_away", "broker_away", "no_scheduler"} <= {one["code"] for one in found}
    assert took < 40, "bounded, whatever else this machine does"
