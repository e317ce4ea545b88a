"""A worker's settings: the only reader of the environment in `workers`.

Environment, prefix `JOBPLANE_WORKER_`. A worker knows the broker and Redis and nothing of the database.
"""

import functools
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from workers.masks import compiled


class SettingsError(Exception):
    """A setting is missing or cannot be; the text is one line that names it."""


#: What stands for a server where tasks are run eagerly.
_NO_SERVER: Final = {"broker_url": "memory://", "redis_url": "cache+memory://"}


def _scheme(*allowed: str) -> AfterValidator:
    def check(value: SecretStr) -> SecretStr:
        scheme = value.get_secret_value().partition("://")[0]
        if scheme not in allowed and value.get_secret_value() not in _NO_SERVER.values():
            raise ValueError(f"must begin with {' or '.join(f'{name}://' for name in allowed)}")
        return value

    return AfterValidator(check)


def _names(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _folder(value: Path | None) -> Path | None:
    if value is not None and not value.is_dir():
        raise ValueError("must be a folder that exists")
    return value


def _upper(value: object) -> object:
    return value.strip().upper() if isinstance(value, str) else value


def _patterns(value: object) -> object:
    return compiled(value) if isinstance(value, str) else value


BrokerUrl = Annotated[SecretStr, _scheme("amqp", "amqps", "redis", "rediss")]
RedisUrl = Annotated[SecretStr, _scheme("redis", "rediss")]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)]
Masks = Annotated[tuple[re.Pattern[str], ...], NoDecode, BeforeValidator(_patterns)]


class Settings(BaseSettings):
    """What a worker needs to know; frozen, read once at start."""

    model_config = SettingsConfigDict(env_prefix="JOBPLANE_WORKER_", frozen=True, extra="ignore")

    broker_url: BrokerUrl = Field(description="the Celery broker, `amqp://` or `redis://`")
    redis_url: RedisUrl = Field(description="Redis or Valkey: results, leases, presence; the plane's own")
    include: Names = Field((), description="task modules of your own, comma separated")
    autodiscover: Names = Field(
        (), description="packages of your own whose modules named `tasks` are found by themselves, comma separated"
    )
    context: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="what is entered around every call of a task: `module:factory` of a context manager",
    )
    queues: Names = Field(
        ("default",), min_length=1, description="queues consumed where `-Q` names none, comma separated"
    )
    eager: bool = Field(
        False, description="tasks run where they are called: for tests of your own, without a broker and without Redis"
    )
    concurrency: int | None = Field(None, ge=1, le=10_000, description="how many tasks run at once; default: the cores")
    soft_shutdown_s: float = Field(
        10, ge=0, le=3600, description="how long a stop lets running tasks finish before it hands them back"
    )
    max_tasks_per_child: int = Field(
        1000, ge=1, description="a child of the prefork pool is replaced after so many tasks: what leaks, leaks no more"
    )
    max_memory_per_child_mib: int = Field(
        1024, ge=1, description="and after the task that left it with more resident memory than this"
    )
    fence: bool = Field(
        True,
        description="end a task whose lease could not be renewed for 24 s, for another worker may soon begin it; "
        "`false` lets it go on through a longer absence of Redis, beside a second body if only this worker is cut off",
    )
    visibility_timeout_s: int = Field(
        12 * 3600, ge=60, description="Redis broker: an unacknowledged message is delivered again after this long"
    )

    result_limit_mib: int = Field(
        16, ge=1, le=512, description="most MiB of a result, as JSON; a body that returns more fails `ResultTooLarge`"
    )

    logs: bool = Field(True, description="keep what a task of the plane logs and prints with its run")
    log_level: LogLevel = Field(
        "INFO",
        description="least level of a line that is kept with its run; what a logger lets through stays its own matter",
    )
    log_masks: Masks = Field(
        (), description="regular expressions of secrets to mask in logs beside the known ones; comma or line separated"
    )

    files_root: Annotated[Path | None, AfterValidator(_folder)] = Field(
        None, description="`files.digest` reads below this folder only; default: any folder that the worker may read"
    )
    http_allow_private: bool = Field(
        False, description="`http.request` may reach addresses that are not public, as of this machine or network"
    )
    http_max_bytes: int = Field(64 * 1024**2, ge=1, description="most bytes of an answer that `http.request` reads")
    http_max_timeout_s: float = Field(3600, ge=1, description="longest `timeout_s` that `http.request` accepts")

    @model_validator(mode="before")
    @classmethod
    def _needs_no_server(cls, given: dict[str, Any]) -> dict[str, Any]:
        if str(given.get("eager", "")).lower() not in {"true", "1", "yes", "on"}:
            return given
        return {**given, **_NO_SERVER}  # also where the container names them: nobody is there in a test

    @classmethod
    def load(cls, **overrides: object) -> Self:
        """Read the environment; SettingsError with one line that names the first setting at fault."""
        try:
            return cls(**overrides)  # type: ignore[arg-type]
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = "JOBPLANE_WORKER_" + "_".join(str(part) for part in first["loc"][:1]).upper()
            message = "is not set" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
            raise SettingsError(f"{name}: {message}") from None


@functools.cache
def current() -> Settings:
    """The settings of this process, read at the first call."""
    return Settings.load()
