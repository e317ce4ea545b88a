"""Brings a database to a revision of `alembic/`. Code of one version runs on the schema of the next."""

from pathlib import Path

from alembic import command
from alembic.config import Config

HERE = Path(__file__).parent


def config(database_url: str) -> Config:
    """Alembic's configuration for this database; finds the scripts in a checkout and in an installed wheel."""
    home = HERE if (HERE / "alembic.ini").exists() else HERE.parent
    made = Config(home / "alembic.ini")
    made.set_main_option("sqlalchemy.url", database_url.replace("%", "%%"))
    return made


def upgrade(database_url: str, revision: str = "head") -> None:
    """Migrate up. `database_url` as in the settings (`postgresql+asyncpg://...`). Two at once wait for each other."""
    command.upgrade(config(database_url), revision)


def downgrade(database_url: str, revision: str) -> None:
    """Migrate down; what a later revision added is lost."""
    command.downgrade(config(database_url), revision)
