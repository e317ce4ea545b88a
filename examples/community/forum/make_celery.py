"""Where `celery -A forum.make_celery worker` finds the app."""

from forum import create_app

flask_app = create_app()
celery_app = flask_app.extensions["celery"]
