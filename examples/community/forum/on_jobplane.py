"""The same tasks on jobplane's own worker, should the forum want leases, logs and cancel one day.

    JOBPLANE_WORKER_INCLUDE=forum.tasks JOBPLANE_WORKER_CONTEXT=forum.on_jobplane:app_context jobplane worker -Q forum

The app context, which `FlaskTask` gives to the stock worker, is then what the worker enters around every call.
"""

import functools

from flask import Flask
from flask.ctx import AppContext

from forum import create_app


def app_context() -> AppContext:
    return _app().app_context()


@functools.cache
def _app() -> Flask:
    # Without a Celery of its own, for the worker has one.
    return create_app(with_celery=False)
