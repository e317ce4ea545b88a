"""`jobplane watch RUN_ID`: follows a run in the terminal over its feed."""

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Any, Final, Literal, NoReturn
from urllib.parse import urlsplit, urlunsplit
from urllib.request import ProxyHandler, build_opener
from uuid import UUID

import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

SUCCEEDED: Final = 0
FAILED: Final = 1
WRONG: Final = 2
INTERRUPTED: Final = 130

#: Closes after which a new connection will not fare better.
_FINAL_CODES: Final = frozenset({4400, 4401, 4403, 4404})
_NEAR: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_MOST_BYTES: Final = 16 * 1024 * 1024
_FIRST_RETRY_S: Final = 0.2
_LAST_RETRY_S: Final = 5.0
#: A run that is PENDING for so long is asked why, and then as often again while it is.
_ASK_WHY_S: Final = 5.0
#: A line of the log is shown in pieces of this length if it does not end.
_MOST_REST: Final = 64 * 1024


class _Stop(Exception):
    """The end of the command: an exit status and perhaps a line that says why."""

    def __init__(self, status: int, line: str | None = None) -> None:
        super().__init__(line)
        self.status = status
        self.line = line


async def watch(url_base: str, run_id: str, console: Console | None = None, *, logs: bool = True) -> int:
    """Show a run, and what it logs, until it ends; returns 0 on SUCCESS, 1 on FAILURE and REVOKED, 2 if there is
    nothing to follow, 130 on Ctrl-C. `url_base` is the plane's, as `http://127.0.0.1:8000`. A connection that breaks
    is made again."""
    console = console or Console(highlight=False, soft_wrap=True)
    try:
        url = _feed_url(url_base, run_id)
        with _Screen(console) as screen:
            asking = asyncio.create_task(_ask_why(url, screen))
            try:
                await _follow(f"{url}?logs=1" if logs else url, screen)
            finally:
                asking.cancel()
    except _Stop as stop:
        if stop.line is not None:
            console.print(Text(stop.line))
        return stop.status
    except asyncio.CancelledError:  # how asyncio.run tells of Ctrl-C
        return INTERRUPTED


def _feed_url(url_base: str, run_id: str) -> str:
    try:
        parsed_id = UUID(run_id)
    except ValueError:
        raise _Stop(WRONG, f"{_clean(run_id)}: not a run id") from None
    parts = urlsplit(url_base)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme)
    if scheme is None or not parts.netloc:
        raise _Stop(WRONG, f"{_clean(url_base)}: must be the address of a plane, as http://127.0.0.1:8000")
    return urlunsplit((scheme, parts.netloc, f"{parts.path.rstrip('/')}/api/v1/runs/{parsed_id}/feed", "", ""))


async def _follow(url: str, screen: "_Screen") -> NoReturn:
    """Until `_Stop`. The first connection must succeed; a later one is tried until it does."""
    met, retry_s = False, _FIRST_RETRY_S
    # A proxy named by the environment cannot reach this machine's own loopback.
    proxy: Literal[True] | None = None if urlsplit(url).hostname in _NEAR else True
    while True:
        try:
            async with connect(url, compression=None, max_size=_MOST_BYTES, open_timeout=10, proxy=proxy) as socket:
                met, retry_s = True, _FIRST_RETRY_S
                await _read(socket, screen)
        except (InvalidHandshake, InvalidURI) as error:
            if not met or isinstance(error, InvalidURI):
                raise _Stop(WRONG, f"no plane at {url}: {_clean(str(error))}") from None
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd is not None else 1006
            reason = closed.rcvd.reason if closed.rcvd is not None else ""
            if code in _FINAL_CODES:
                raise _Stop(WRONG, _clean(reason) or f"refused with {code}") from None
        except OSError as error:  # refused, reset, timed out
            if not met:
                raise _Stop(WRONG, f"no plane at {url}: {_clean(str(error)) or type(error).__name__}") from None
        screen.interrupted()
        await asyncio.sleep(retry_s * random.uniform(0.5, 1.0))  # noqa: S311  spreads clients, guards nothing
        retry_s = min(retry_s * 2, _LAST_RETRY_S)


async def _ask_why(feed_url: str, screen: "_Screen") -> NoReturn:
    """Tell the most telling reason of a run that stays PENDING; a plane that does not answer is asked again."""
    parts = urlsplit(feed_url)
    url = urlunsplit((parts.scheme.replace("ws", "http", 1), parts.netloc, f"{parts.path[: -len('feed')]}why", "", ""))
    while True:
        await asyncio.sleep(_ASK_WHY_S)
        if screen.state == "PENDING":
            with contextlib.suppress(OSError, HTTPException, ValueError, LookupError):
                answer = orjson.loads(await asyncio.to_thread(_get, url))
                screen.waits(answer["items"][0]["code"], answer["items"][0]["detail"])


def _get(url: str) -> bytes:
    near = urlsplit(url).hostname in _NEAR
    opener = build_opener(ProxyHandler({})) if near else build_opener()
    with opener.open(url, timeout=2) as answer:
        body: bytes = answer.read(_MOST_BYTES)
        return body


async def _read(socket: ClientConnection, screen: "_Screen") -> NoReturn:
    """Show what a connection says; `_Stop` at the end of the run, ConnectionClosed at any other."""
    while True:
        frame = orjson.loads(await socket.recv())
        if frame["type"] == "run":
            screen.show(frame["run"])
        elif frame["type"] == "log":
            screen.log(frame)
        elif frame["type"] == "end":
            screen.finish()
            raise _Stop(SUCCEEDED if frame["state"] == "SUCCESS" else FAILED)


@dataclass(slots=True)
class _Screen:
    """A progress bar on a terminal with the log above it, a line per change elsewhere."""

    console: Console
    bar: Progress = field(init=False)
    task: TaskID = field(init=False)
    version: int = field(init=False, default=0)
    last_line: str = field(init=False, default="")
    state: str = field(init=False, default="")
    #: The code of the reason that was told last; a sentence of the same one only has other figures.
    last_code: str = field(init=False, default="")
    #: The run as it ended.
    ended: dict[str, Any] | None = field(init=False, default=None)
    #: Whose log was shown last, up to which offset, and its last line if that has no end yet.
    attempt: int = field(init=False, default=1)
    offset: int = field(init=False, default=0)
    rest: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self.bar = Progress(
            TextColumn("{task.fields[state]}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[percent]}", markup=False),
            _Elapsed(),
            TextColumn("{task.fields[message]}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal,
            expand=True,
        )
        self.task = self.bar.add_task("", total=None, state="...", percent="", message="", since=None, elapsed=None)

    def __enter__(self) -> "_Screen":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, run: dict[str, Any]) -> None:
        """A run as the feed gives it; one that is not newer than the last is passed over."""
        if run["version"] <= self.version:
            return
        first = self.version == 0
        self.version = run["version"]
        state, progress = run["state"], run["progress"] or {}
        self.state = state
        ended = run["end_time"] is not None
        percent = 100.0 if state == "SUCCESS" else progress.get("percent")
        attempt = f"attempt {run['attempt']}" if run["attempt"] > 1 else ""
        message = _clean(" · ".join(filter(None, (attempt, progress.get("message") or run["reason"]))))
        if first:
            self._say(f"{_clean(run['job_name'] or run['task'])} · {run['id']} · queue {_clean(run['queue'])}")
        shown = "" if percent is None else f"{percent:.1f}%"
        if not self.console.is_terminal:
            line = " ".join(filter(None, (state, shown, message)))
            if line != self.last_line:
                self._say(line)
            self.last_line = line
        elapsed_s = _elapsed_s(run)
        self.bar.update(
            self.task,
            total=100 if percent is not None or ended else None,
            completed=percent or 0,
            state=state,
            percent=shown,
            message=message,
            elapsed=elapsed_s,
            since=None if ended or elapsed_s is None else time.monotonic(),
        )
        if ended:
            self.bar.refresh()
            self.ended = run

    def log(self, part: dict[str, Any]) -> None:
        """A part of the log; after a connection that broke it begins with what was shown before."""
        if part["attempt"] > self.attempt:
            self._end_line()
            self.attempt, self.offset = part["attempt"], 0
            self._say(f"--- attempt {self.attempt} ---")
        if part["attempt"] < self.attempt or part["next"] <= self.offset:
            return
        known, text = max(self.offset - part["offset"], 0), part["text"]
        if known and len(text.encode()) == part["next"] - part["offset"]:  # without marks of cuts
            text = text.encode()[known:].decode(errors="replace")
        self.offset = part["next"]
        *lines, self.rest = f"{self.rest}{text}".split("\n")
        if len(self.rest) > _MOST_REST:
            lines, self.rest = [*lines, self.rest], ""
        if lines:
            self._say("\n".join(_clean(line.expandtabs()).rstrip() for line in lines))

    def finish(self) -> None:
        """The run has ended, and so has its log."""
        self._end_line()
        if self.ended is not None:
            self._tell_end(self.ended, _elapsed_s(self.ended))

    def _end_line(self) -> None:
        if self.rest:
            self._say(_clean(self.rest))
            self.rest = ""

    def waits(self, code: str, detail: str) -> None:
        """Why a run is still PENDING, once for each reason."""
        if self.state == "PENDING" and code != self.last_code:
            self.last_code = code
            self._say(f"waits: {_clean(detail)}")

    def interrupted(self) -> None:
        """The connection is gone."""
        self.bar.update(self.task, message="connection lost, trying again")
        if not self.console.is_terminal and self.last_line != "connection lost, trying again":
            self.last_line = "connection lost, trying again"
            self._say(self.last_line)

    def _tell_end(self, run: dict[str, Any], elapsed_s: float | None) -> None:
        took = "" if elapsed_s is None else f" after {elapsed_s:.1f} s"
        if run["state"] == "SUCCESS":
            self._say(f"SUCCESS{took}: {_clean(orjson.dumps(run['result']).decode())[:2000]}")
        elif run["error"] is not None:
            self._say(f"FAILURE{took}: {_clean(run['error']['type'])}: {_clean(run['error']['message'])}"[:2000])
        else:
            self._say(f"{run['state']}{took}: {_clean(run['reason'] or 'no reason was given')}")

    def _say(self, line: str) -> None:
        self.console.print(Text(line))


class _Elapsed(ProgressColumn):
    """Seconds since the run began, counted on by this machine's clock between two news."""

    def render(self, task: Task) -> Text:
        elapsed, since = task.fields["elapsed"], task.fields["since"]
        if elapsed is None:
            return Text("")
        if since is not None:
            elapsed += time.monotonic() - since
        minutes, seconds = divmod(int(elapsed), 60)
        hours, minutes = divmod(minutes, 60)
        return Text(f"{hours}:{minutes:02}:{seconds:02}")


def _elapsed_s(run: dict[str, Any]) -> float | None:
    """Seconds that the run has taken so far; its own instants are the plane's, only "now" is this machine's."""
    if run["start_time"] is None:
        return None
    until = datetime.fromisoformat(run["end_time"] or run["update_time"])
    if run["end_time"] is None:
        until = max(until, datetime.now(UTC))
    return max((until - datetime.fromisoformat(run["start_time"])).total_seconds(), 0.0)


def _clean(text: str) -> str:
    """One line without anything that a terminal would obey: what tasks say is a stranger's text."""
    return "".join(char if char.isprintable() else " " for char in str(text))
