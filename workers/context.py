"""The context of a worker: a context manager of the team's own, entered around every call of a body.

`JOBPLANE_WORKER_CONTEXT=package.module:factory` (`app.conf.jobplane_context`, which may also be the factory itself)
names what makes it: `factory(task)`, or `factory()` if it asks for nothing. Synchronous and asynchronous context
managers serve both kinds of bodies; what they yield is `task.context`.
"""

import contextlib
import functools
import inspect
import operator
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from types import TracebackType
from typing import Any, Final, TypeVar

from celery.signals import celeryd_init

from workers import coroutines
from workers.coroutines import Elsewhere
from workers.log import log
from workers.tracking import Call

T = TypeVar("T")

SETTING: Final = "JOBPLANE_WORKER_CONTEXT"


class ContextError(Exception):
    """The worker's context cannot be made, entered or left; the message says which, and why."""


@dataclass(frozen=True, slots=True)
class Factory:
    """What makes the context of one call."""

    name: str
    make: Callable[..., Any]
    takes_task: bool

    def manager(self, task: Any) -> Any:
        """A context manager for one call of the task."""
        try:
            made = self.make(task) if self.takes_task else self.make()
        except Exception as error:
            raise self._error("made", error) from error
        if not _is_sync(made) and not _is_async(made):
            raise ContextError(f"context {self.name}: returned {type(made).__name__}, which is no context manager")
        return made

    def around(self, task: Any, call: Call, body: Callable[[], T], elsewhere: Elsewhere) -> T | None:
        """Run a body inside, in this thread."""
        manager = self.manager(task)
        if _is_sync(manager):
            with _Entered(self, manager) as call.context:
                return body()
        else:
            with coroutines.held(_EnteredAsync(self, manager), elsewhere) as (value, inside):
                call.context = value
                return coroutines.brought_here(inside).run(body)
        return None  # it kept the body's exception to itself

    def around_coroutine(
        self,
        task: Any,
        call: Call,
        body: Callable[[], Awaitable[T]],
        run: Callable[[Callable[[], Awaitable[T | None]]], T | None],
    ) -> T | None:
        """Run a coroutine inside, by `run`; an asynchronous context is entered by the coroutine itself."""
        manager = self.manager(task)
        if not _is_async(manager):
            with _Entered(self, manager) as call.context:
                return run(body)
            return None

        async def inside() -> T | None:
            async with _EnteredAsync(self, manager) as call.context:
                return await body()
            return None

        return run(inside)

    def not_left(self, raised: Exception, error: BaseException | None) -> None:
        """Raise that it could not be left, unless what leaves through it is no answer of the body's: that goes on."""
        said = self._error("left", raised, error)
        if error is None or isinstance(error, Exception):
            raise said from raised
        # The worker is being stopped, say: with an error in its place the attempt would not be handed back, but fail.
        log.warning("context_not_left", error=str(said))

    def _error(self, what: str, error: BaseException, after: BaseException | None = None) -> ContextError:
        late = "" if after is None else f" after {_words(after)}"
        return ContextError(f"context {self.name}: could not be {what}{late}: {_words(error)}")


@functools.lru_cache(maxsize=16)
def load(setting: Any) -> Factory | None:
    """The factory that a setting names, or is; None if it is empty. ContextError with one line if it cannot be."""
    if not setting:
        return None
    name, make = (setting, _named(setting)) if isinstance(setting, str) else (_name(setting), setting)
    if not callable(make):
        raise ContextError(f"{SETTING}: {name} cannot be called")
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        return Factory(name, make, takes_task=True)
    needed = [each for each in parameters if each.default is each.empty and each.kind not in _VARIABLE]
    if len(needed) > 1 or any(each.kind is each.KEYWORD_ONLY for each in needed):
        raise ContextError(f"{SETTING}: {name} must take the task, or nothing")
    takes_task = bool(needed) or any(each.name == "task" and each.kind in _POSITIONAL for each in parameters)
    return Factory(name, make, takes_task)


_VARIABLE: Final = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
_POSITIONAL: Final = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}


def _named(setting: str) -> Any:
    module, _, name = setting.partition(":")
    if not module or not name:
        raise ContextError(f"{SETTING}: must be package.module:factory, not {setting!r}")
    try:
        return operator.attrgetter(name)(import_module(module))
    except Exception as error:
        raise ContextError(f"{SETTING}: {setting}: {_words(error)}") from error


class _Entered(contextlib.AbstractContextManager[Any]):
    """A context manager whose own errors say that they are its own."""

    def __init__(self, factory: Factory, manager: Any) -> None:
        self._factory = factory
        self._manager = manager

    def __enter__(self) -> Any:
        try:
            return self._manager.__enter__()
        except Exception as error:
            raise self._factory._error("entered", error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        try:
            kept = bool(self._manager.__exit__(kind, error, traceback))
        except Exception as raised:
            if raised is error:
                raise
            self._factory.not_left(raised, error)
            return False
        return kept


class _EnteredAsync(contextlib.AbstractAsyncContextManager[Any]):
    """As `_Entered`."""

    def __init__(self, factory: Factory, manager: Any) -> None:
        self._factory = factory
        self._manager = manager

    async def __aenter__(self) -> Any:
        try:
            return await self._manager.__aenter__()
        except Exception as error:
            raise self._factory._error("entered", error) from error

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        try:
            kept = bool(await self._manager.__aexit__(kind, error, traceback))
        except Exception as raised:
            if raised is error:
                raise
            self._factory.not_left(raised, error)
            return False
        return kept


def _is_sync(manager: object) -> bool:
    return hasattr(type(manager), "__enter__") and hasattr(type(manager), "__exit__")


def _is_async(manager: object) -> bool:
    return hasattr(type(manager), "__aenter__") and hasattr(type(manager), "__aexit__")


def _name(value: object) -> str:
    return f"{getattr(value, '__module__', '?')}:{getattr(value, '__qualname__', type(value).__qualname__)}"


def _words(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@celeryd_init.connect(weak=False)
def _check(conf: Any = None, **_: object) -> None:
    # At the start of a worker, after its modules are imported: what cannot be ends it with one line.
    try:
        load(conf.get("jobplane_context"))
    except ContextError as error:
        sys.stderr.write(f"jobplane: {error}\n")
        raise SystemExit(2) from None
