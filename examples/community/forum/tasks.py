"""What the forum computes aside: scores of posts and comments. PROGRESS is Celery's own `update_state`."""

import time
from typing import Any

from celery import shared_task
from flask import current_app

from forum.database import connection
from forum.scores import heat, worth

BATCHES = 10


@shared_task(bind=True)
def post_score(self: Any) -> dict[str, Any]:
    """The heat of every post; how many there are, and the hottest."""
    db = connection()
    posts = db.execute(
        "SELECT id, age_h, votes, (SELECT count(*) FROM comments WHERE post_id = posts.id) AS comments FROM posts"
    ).fetchall()
    _store(self, "posts", [(heat(row["votes"], row["comments"], row["age_h"]), row["id"]) for row in posts])
    hottest = db.execute("SELECT title FROM posts ORDER BY score DESC LIMIT 1").fetchone()["title"]
    return {"posts": len(posts), "hottest": hottest}


@shared_task(bind=True)
def comment_score(self: Any) -> dict[str, Any]:
    """The worth of every comment; how many there are, and the mean."""
    db = connection()
    comments = db.execute("SELECT id, up, down FROM comments").fetchall()
    _store(self, "comments", [(worth(row["up"], row["down"]), row["id"]) for row in comments])
    mean = db.execute("SELECT avg(score) AS mean FROM comments").fetchone()["mean"]
    return {"comments": len(comments), "mean": round(mean, 4)}


@shared_task(name="community.report")
def report() -> dict[str, Any]:
    """What the forum has. The media service has a task of the same name, on a queue of its own."""
    db = connection()
    counts = {table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("posts", "comments")}  # noqa: S608
    return {"service": "forum", **counts}


def _store(task: Any, table: str, scores: list[tuple[float, int]]) -> None:
    """Write scores in batches, each a transaction, and say after each how many are done."""
    db = connection()
    size = -(-len(scores) // BATCHES)
    for first in range(0, len(scores), size):
        begin = time.monotonic()
        batch = scores[first : first + size]
        db.execute("BEGIN IMMEDIATE")
        db.executemany(f"UPDATE {table} SET score = ? WHERE id = ?", batch)  # noqa: S608
        db.execute("COMMIT")
        task.update_state(state="PROGRESS", meta={"current": first + len(batch), "total": len(scores)})
        time.sleep(max(current_app.config["PACE_S"] - (time.monotonic() - begin), 0))
