"""How columns are written, and the names that constraints get."""

from typing import Any

from sqlalchemy import Boolean, Column, Integer, MetaData, Text, text
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlmodel import Field, SQLModel

SQLModel.metadata.naming_convention = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
).naming_convention


def instant(*, nullable: bool = False, default: bool = False) -> Any:
    return Field(
        sa_column=Column(
            TIMESTAMP(timezone=True), nullable=nullable, server_default=text("clock_timestamp()") if default else None
        )
    )


def document(*, nullable: bool = False, default: str | None = None) -> Any:
    return Field(sa_column=Column(JSONB(none_as_null=True), nullable=nullable, server_default=default))


def words(*, nullable: bool = False, default: str | None = None) -> Any:
    return Field(sa_column=Column(Text, nullable=nullable, server_default=default))


def number(kind: Any = Integer, *, nullable: bool = False, default: str | None = None) -> Any:
    return Field(sa_column=Column(kind, nullable=nullable, server_default=default))


def flag(default: bool) -> Any:
    return Field(sa_column=Column(Boolean, nullable=False, server_default=text(str(default).lower())))
