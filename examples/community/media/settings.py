"""What the media service needs to know, out of the environment: `MEDIA_FOLDER` and so on."""

import functools
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read once per process."""

    model_config = SettingsConfigDict(env_prefix="MEDIA_", frozen=True)

    folder: Path = Field(
        default=Path("instance/media"), description="files that came in, files that were taken over, database"
    )
    pace_s: float = Field(default=0.2, ge=0, description="so long takes a file at least: one should have time to watch")

    @property
    def incoming(self) -> Path:
        return self.folder / "incoming"

    @property
    def stored(self) -> Path:
        return self.folder / "stored"

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.folder / 'media.sqlite'}"


@functools.cache
def current() -> Settings:
    """The settings of this process."""
    return Settings()
