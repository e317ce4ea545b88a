"""The forum's SQLite database, one connection per app context. The first that opens it fills it with 400 posts."""

import random
import sqlite3
from pathlib import Path

from flask import Flask, current_app, g

SCHEMA = (
    "CREATE TABLE posts (id INTEGER PRIMARY KEY, title TEXT, age_h REAL, votes INTEGER, score REAL)",
    "CREATE TABLE comments (id INTEGER PRIMARY KEY, post_id INTEGER, up INTEGER, down INTEGER, score REAL)",
    "CREATE INDEX comments_post_id ON comments (post_id)",
)
POSTS, COMMENTS = 400, 4000


def init_app(app: Flask) -> None:
    app.teardown_appcontext(_close)


def connection() -> sqlite3.Connection:
    """The connection of this app context; without a transaction but those that the caller begins."""
    if "connection" not in g:
        path = Path(current_app.config["DATABASE"])
        path.parent.mkdir(parents=True, exist_ok=True)
        g.connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        g.connection.row_factory = sqlite3.Row
        _fill_once(g.connection)
    return g.connection


def _close(_error: BaseException | None) -> None:
    opened = g.pop("connection", None)
    if opened is not None:
        opened.close()


def _fill_once(db: sqlite3.Connection) -> None:
    if _filled(db):
        return
    db.execute("BEGIN IMMEDIATE")  # one of several processes fills it, the others wait here
    if not _filled(db):
        for statement in SCHEMA:
            db.execute(statement)
        chance = random.Random(7)  # noqa: S311 - the same posts for everybody
        posts = [(n, f"Post {n}", chance.uniform(0, 72), int(chance.paretovariate(1))) for n in range(1, POSTS + 1)]
        comments = [
            (n, chance.randint(1, POSTS), int(chance.paretovariate(1)), int(chance.expovariate(0.5)))
            for n in range(1, COMMENTS + 1)
        ]
        db.executemany("INSERT INTO posts (id, title, age_h, votes) VALUES (?, ?, ?, ?)", posts)
        db.executemany("INSERT INTO comments (id, post_id, up, down) VALUES (?, ?, ?, ?)", comments)
    db.execute("COMMIT")


def _filled(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = 'posts'").fetchone() is not None
