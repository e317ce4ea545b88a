"""The plane's settings: the only reader of the environment in `app`.

Environment, prefix `JOBPLANE_`. The README's table is tested to name every one of these fields.
"""

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app import faults


class SettingsError(Exception):
    """A setting is missing or cannot be; the text is one line that names it."""


def _scheme(*allowed: str) -> AfterValidator:
    def check(value: SecretStr) -> SecretStr:
        scheme = value.get_secret_value().partition("://")[0]
        if scheme not in allowed:
            raise ValueError(f"must begin with {' or '.join(f'{name}://' for name in allowed)}")
        return value

    return AfterValidator(check)


def _names(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


DatabaseUrl = Annotated[SecretStr, _scheme("postgresql+asyncpg")]
BrokerUrl = Annotated[SecretStr, _scheme("amqp", "amqps", "redis", "rediss")]
RedisUrl = Annotated[SecretStr, _scheme("redis", "rediss")]


def _store(value: str) -> str:
    scheme, _, rest = value.rstrip("/").partition("://")
    if not (scheme == "file" and rest.startswith("/")) and not (scheme == "s3" and rest.strip("/")):
        raise ValueError("must be file:///folder or s3://bucket/prefix")
    return value.rstrip("/")


LogStore = Annotated[str, AfterValidator(_store)]


def _known_faults(value: str) -> str:
    faults.parse(value)
    return value


Faults = Annotated[str, AfterValidator(_known_faults)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Read(BaseSettings):
    """How settings are read, and the one line that a wrong one ends the process with."""

    model_config = SettingsConfigDict(env_prefix="JOBPLANE_", frozen=True, extra="ignore")

    @classmethod
    def load(cls, **overrides: object) -> Self:
        """Read the environment; SettingsError with one line that names the first setting at fault."""
        try:
            return cls(**overrides)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = "JOBPLANE_" + "_".join(str(part) for part in first["loc"][:1] or ("host",)).upper()
            message = "is not set" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
            raise SettingsError(f"{name}: {message}") from None


class Listening(_Read):
    """Where the API listens."""

    host: str = Field("127.0.0.1", description="address that the API listens on")
    port: int = Field(8000, ge=0, le=65535, description="port that the API listens on; 0 takes a free one")
    allow_remote: bool = Field(
        False,
        description="listen on an address that others can reach; there are no API keys yet, so this must be meant",
    )

    @model_validator(mode="after")
    def _loopback_unless_meant(self) -> Self:
        if not self.allow_remote and not _is_loopback(self.host):
            raise ValueError(
                f"{self.host} can be reached by others and there are no API keys yet; "
                "set JOBPLANE_ALLOW_REMOTE=true if that is meant"
            )
        return self


class Settings(Listening):
    """What an API, scheduler or migration process needs to know; frozen, read once at start."""

    database_url: DatabaseUrl = Field(description="PostgreSQL, as `postgresql+asyncpg://user:password@host:port/name`")
    redis_url: RedisUrl = Field(description="Redis or Valkey: Celery results, leases, feed fan-out")
    broker_url: BrokerUrl = Field(description="the Celery broker, `amqp://` or `redis://`")

    log_format: Literal["json", "console"] = Field("json", description="how log lines look: `json` or `console`")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the least level that is logged"
    )

    pool_size: int = Field(10, ge=2, le=200, description="most database connections of one process")
    statement_timeout_s: float = Field(15, ge=1, le=600, description="longest that one statement may take")

    tick_batch: int = Field(1000, ge=1, le=5000, description="most jobs that one tick settles in a transaction")
    dispatch_batch: int = Field(500, ge=1, le=5000, description="most runs that one dispatch pass publishes")
    publish_timeout_s: float = Field(5, ge=0.5, le=20, description="longest wait for the broker's confirms of a batch")
    dispatch_timeout_s: float = Field(
        30, ge=5, le=3600, description="a dispatched run that no worker started for this long is looked for"
    )
    task_queues: Names = Field(("default",), description="queues that exist from the first start on, comma separated")
    reply_queue: str = Field(
        "jobplane.replies",
        min_length=1,
        max_length=255,
        description="RabbitMQ: where workers with `rpc://` results answer; one of its own for each plane on a broker",
    )
    dead_letter_queue: str = Field(
        "jobplane.dead",
        min_length=1,
        max_length=255,
        description="RabbitMQ: where messages go that a queue with `dead_letter` gives up; likewise one for each plane",
    )

    log_store: LogStore = Field(
        "file:///var/lib/jobplane",
        description="where logs and large results of runs are kept: `file:///folder` or `s3://bucket/prefix` (with the "
        "usual `AWS_` variables); every API and scheduler must reach the same one",
    )
    result_limit_mib: int = Field(
        16, ge=1, le=512, description="most MiB of a result, as JSON; over 64 KiB it is kept in the log store"
    )
    args_limit_kib: int = Field(64, ge=1, le=4096, description="most KiB that a run's args and kwargs may take as JSON")
    retain_success_days: float = Field(7, gt=0, description="days that runs which ended in SUCCESS or REVOKED are kept")
    retain_failure_days: float = Field(30, gt=0, description="days that runs which ended in FAILURE are kept")
    faults: Faults = Field("", description="fault points for tests, see `app/faults.py`; empty in production")

    @property
    def on_rabbitmq(self) -> bool:
        """Whether the broker is RabbitMQ; otherwise it is Redis."""
        return self.broker_url.get_secret_value().startswith("amqp")


class UpSettings(Listening):
    """What `jobplane up` needs to know: a server that is not named here is embedded."""

    database_url: DatabaseUrl | None = None
    redis_url: RedisUrl | None = None
    broker_url: BrokerUrl | None = None
    task_queues: Names = Field(("default",), description="queues that exist from the first start on, comma separated")
    log_store: LogStore | None = Field(None, description="where logs and large results are kept; else below `data_dir`")
    data_dir: Path = Field(Path(".jobplane"), description="folder of `jobplane up`: data, passwords, logs and results")
    log_format: Literal["json", "console"] = "console"


def child_environment(settings: Mapping[str, str], defaults: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process that we start: our own with these settings in it, and defaults where it has none."""
    return {**(defaults or {}), **os.environ, **settings}
