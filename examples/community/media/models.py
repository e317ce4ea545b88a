"""The one table of the media service."""

from sqlmodel import Field, SQLModel


class File(SQLModel, table=True):
    """A file that was taken over."""

    __tablename__ = "files"

    album: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    sha256: str
    size: int
