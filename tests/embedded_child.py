"""A program that starts both embedded servers, says where they are, and stops them when its input ends.

`python -m tests.embedded_child '{"folder": ..., "uid": null | 65534, ...}'`. With a uid it becomes that user after its
imports, for such a user may be unable to read the environment that root's tests run in.
"""

import encodings.idna  # noqa: F401  sockets load it late, when it may no longer be readable
import json
import os
import sys
from pathlib import Path

from app.embedded import Postgres, Valkey


def main() -> None:
    given = json.loads(sys.argv[1])
    if given["uid"] is not None:
        os.setgroups([])
        os.setgid(given["gid"])
        os.setuid(given["uid"])
        os.chdir("/")
    folder = Path(given["folder"])
    binaries, binary = given["binaries"], given["valkey_binary"]
    postgres = Postgres(
        folder,
        durable=False,
        system_root=Path(given["system_root"]),
        binaries=Path(binaries) if binaries else None,
    )
    valkey = Valkey(folder, binary=Path(binary) if binary else None)
    postgres.start()
    valkey.start()
    where = {"pids": [postgres.pid, valkey.pid], "postgres": postgres.url, "valkey": valkey.url}
    print(json.dumps(where), flush=True)
    sys.stdin.read()
    valkey.stop()
    postgres.stop()


if __name__ == "__main__":
    main()
