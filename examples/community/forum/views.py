"""What the forum shows: `flask --app forum run`, then `/`."""

from typing import Any

from flask import Blueprint

from forum.database import connection

posts = Blueprint("posts", __name__)


@posts.get("/")
def hot() -> list[dict[str, Any]]:
    """The ten hottest posts."""
    rows = connection().execute("SELECT title, votes, score FROM posts ORDER BY score DESC, id LIMIT 10")
    return [dict(row) for row in rows]
