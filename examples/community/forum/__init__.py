"""The forum of a community site: Flask, SQLite, and a Celery worker as Flask's documentation sets it up.

Nothing in here knows of jobplane. `FORUM_...` in the environment is the configuration, as Flask reads it:
`FORUM_DATABASE`, `FORUM_CELERY__broker_url` and so on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celery import Celery, Task
from flask import Flask


def celery_init_app(app: Flask) -> Celery:
    """The app's Celery: each task runs in the app context."""

    class FlaskTask(Task):
        def __call__(self, *args: object, **kwargs: object) -> object:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(app.name, task_cls=FlaskTask)
    celery_app.config_from_object(app.config["CELERY"])
    celery_app.set_default()
    app.extensions["celery"] = celery_app
    return celery_app


def create_app(config: Mapping[str, Any] | None = None, *, with_celery: bool = True) -> Flask:
    """The forum; `config` overrides what the environment says."""
    app = Flask(__name__)
    app.config.from_mapping(
        DATABASE=str(Path(app.instance_path) / "forum.sqlite"),
        # So long takes a batch at least: an example should leave time to watch it.
        PACE_S=0.2,
        CELERY={
            "broker_url": "redis://localhost",
            "result_backend": "redis://localhost",
            "task_default_queue": "forum",
            # What a plane asks of a stock service: it says when it starts, and for what.
            "task_track_started": True,
            "result_extended": True,
            # A score may be computed twice, so that a killed worker loses none; and a result waits for Redis.
            "task_acks_late": True,
            "result_backend_always_retry": True,
            "broker_connection_retry_on_startup": True,
            "worker_concurrency": 2,
        },
    )
    app.config.from_prefixed_env("FORUM")
    app.config.from_mapping(config)
    if with_celery:
        celery_init_app(app)

    from forum import database, tasks, views  # noqa: F401 - `tasks` is imported so that Celery knows them

    database.init_app(app)
    app.register_blueprint(views.posts)
    return app
