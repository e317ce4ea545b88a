"""What the plane knows of itself."""

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Column,
    Index,
    LargeBinary,
    SmallInteger,
    Text,
    Uuid,
    text,
)
from sqlmodel import Field, SQLModel

from app.models.columns import document, flag, instant, number, words


class IdempotencyKey(SQLModel, table=True):
    """What a POST with this key answered; written in the transaction of its effect."""

    __tablename__: ClassVar[str] = "idempotency_keys"
    __table_args__ = (Index("idempotency_keys_create_time_idx", "create_time"),)

    caller: str = Field(sa_column=Column(Text, primary_key=True))
    operation: str = Field(sa_column=Column(Text, primary_key=True))
    key: str = Field(sa_column=Column(Text, primary_key=True))
    body_hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    status: int = number(SmallInteger)
    headers: dict[str, str] = document()
    body: dict[str, Any] = document()
    create_time: datetime = instant(default=True)


class Lease(SQLModel, table=True):
    """Work that one process at a time should do (`record:redis`). It saves work; correctness never hangs on it."""

    __tablename__: ClassVar[str] = "leases"

    name: str = Field(sa_column=Column(Text, primary_key=True))
    holder: str = words()
    until_time: datetime = instant()


class Process(SQLModel, table=True):
    """A scheduler that lives: what `/readyz` and `/metrics` know of it."""

    __tablename__: ClassVar[str] = "processes"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    kind: str = words()
    #: By loop: when its last pass ended well, and what is wrong with it now.
    detail: dict[str, Any] = document()
    start_time: datetime = instant()
    beat_time: datetime = instant()


class Worker(SQLModel, table=True):
    """A live Celery worker, ours or stock, as it was last seen; one that is gone for long is forgotten."""

    __tablename__: ClassVar[str] = "workers"

    node: str = Field(sa_column=Column(Text, primary_key=True))
    #: Whether it runs our package: then it holds leases.
    ours: bool = flag(False)
    #: What it calls itself, as `py-celery 5.7.0`.
    software: str = words(default="")
    queues: list[str] = Field(sa_column=Column(ARRAY(Text), nullable=False))
    tasks: list[str] = Field(sa_column=Column(ARRAY(Text), nullable=False))
    #: By task, `{signature, schema, doc}`: workers with our package only.
    contracts: dict[str, Any] = document(default="{}")
    #: Names the state of `contracts`.
    contracts_digest: str = words(default="")
    pool: str = words(default="")
    concurrency: int | None = number(nullable=True)
    #: Tasks that it is at, and those that it has taken and not begun; null: it did not say.
    active: int | None = number(nullable=True)
    reserved: int | None = number(nullable=True)
    pid: int | None = number(nullable=True)
    start_time: datetime | None = instant(nullable=True)
    #: When it was first and last seen in this life.
    first_seen_time: datetime = instant()
    seen_time: datetime = instant()


class Plane(SQLModel, table=True):
    """The one row that names this database: a feed cursor of another epoch is of another life."""

    __tablename__: ClassVar[str] = "plane"
    __table_args__ = (CheckConstraint("id = 1", name="single"),)

    id: int = Field(sa_column=Column(SmallInteger, primary_key=True, autoincrement=False))
    epoch: UUID = Field(sa_column=Column(Uuid, nullable=False, server_default=text("gen_random_uuid()")))
    #: The cluster that `epoch` was made in; a restore into another one renews it.
    system_identifier: int = number(BigInteger)
    tzdata_version: str = words(default="")
