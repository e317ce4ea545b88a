"""`files.digest`: the SHA-256 of every file under a folder, with progress by bytes."""

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from celery import shared_task

from workers.settings import current
from workers.task import progress

_BLOCK: Final = 1024**2
_PATTERN_LENGTH: Final = 256

Report = Callable[[int, int], None]


@shared_task(name="files.digest")
def digest(path: str, pattern: str = "**/*") -> dict[str, Any]:
    r"""The SHA-256 of every regular file under `path` whose relative path matches `pattern`, as one digest.

    Returns `{"files", "bytes", "sha256"}`. `sha256` is that of the list which `sha256sum` prints of these files in the
    byte order of their names, so for the default pattern anybody can check it:

        (cd DIR && find . -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0 -r sha256sum --) | sha256sum

    In a pattern `*` and `?` stay within a name and `**/` stands for any folders. Symbolic links are neither followed
    nor counted. Progress counts bytes.

    ValueError or TypeError name a wrong argument; an OSError tells of a file that cannot be read.
    """
    return digest_folder(folder(path, current().files_root), matcher(pattern), report=lambda *at: progress(*at))


def digest_folder(root: Path, matches: Callable[[str], bool], *, report: Report) -> dict[str, Any]:
    """What the task does. A file that grows meanwhile is read to its end."""
    found = sorted((os.fsencode(name), size) for name, size in _files(root) if matches(name))
    total = sum(size for _, size in found)
    manifest, done = hashlib.sha256(), 0
    report(0, total)
    for name, _ in found:
        one = hashlib.sha256()
        for block in _blocks(os.path.join(os.fsencode(root), name)):  # noqa: PTH118  bytes: a name need not be text
            one.update(block)
            done += len(block)
            report(done, max(done, total))
        manifest.update(_line(one.hexdigest(), name))
    report(done, done)
    return {"files": len(found), "bytes": done, "sha256": manifest.hexdigest()}


def folder(value: object, below: Path | None) -> Path:
    """The folder that an argument names, links resolved; ValueError if there is none, or it is not below `below`."""
    if not isinstance(value, str):
        raise TypeError(f"path: must be a string, not {type(value).__name__}")
    if "\0" in value or not value:
        raise ValueError("path: must name a folder")
    given = Path(value)
    if not given.is_absolute():
        if below is None:
            raise ValueError("path: must be absolute")
        given = below / given
    root = given.resolve()
    if below is not None and not root.is_relative_to(below.resolve()):
        raise ValueError("path: not below the folder that this worker reads (files_root)")
    if not root.is_dir():
        raise ValueError(f"path: no such folder on this worker: {value}")
    return root


def matcher(pattern: object) -> Callable[[str], bool]:
    """Whether a relative path matches a glob pattern, in which `**/` stands for any folders, also none."""
    if not isinstance(pattern, str):
        raise TypeError(f"pattern: must be a string, not {type(pattern).__name__}")
    if not pattern or pattern.startswith("/") or ".." in pattern.split("/"):
        raise ValueError("pattern: must be relative, such as **/*.csv")
    if len(pattern) > _PATTERN_LENGTH:
        raise ValueError(f"pattern: longer than {_PATTERN_LENGTH} characters")
    *folders, name = pattern.split("/")
    if any("**" in part and part != "**" for part in (*folders, name)):
        raise ValueError("pattern: ** must stand alone between slashes")
    # `**/**/` is `**/`, and only the last `**/` may have to try again: each before it stops at the first fit.
    folders = [part for n, part in enumerate(folders) if part != "**" or folders[n - 1 : n] != ["**"]]
    if folders.count("**") > 2:
        raise ValueError("pattern: more than two **/")
    expression = "".join("(?:[^/]+/)*" if part == "**" else f"{_of_name(part)}/" for part in folders)
    compiled = re.compile(expression + (".*" if name == "**" else _of_name(name)), re.DOTALL)
    return lambda path: compiled.fullmatch(path) is not None


def _of_name(glob: str) -> str:
    """The regular expression of a glob for one name: `*`, `?`, `[abc]`, `[!abc]`.

    Every `*` but the last stops for good at the first place where what follows it fits, so matching takes no more than
    quadratic time, whatever the glob.
    """
    chunks, rest = [""], glob
    while rest:
        if match := re.match(r"\[(!?)(\]?[^\]]*)\]", rest):
            members = match[2].replace("\\", r"\\").replace("[", r"\[").replace("]", r"\]").replace("^", r"\^")
            chunks[-1] += f"(?!/)[{'^' if match[1] else ''}{members}]"
            rest = rest[match.end() :]
        elif rest[0] == "*":
            chunks.append("")
            rest = rest.lstrip("*")
        else:
            chunks[-1] += "[^/]" if rest[0] == "?" else re.escape(rest[0])
            rest = rest[1:]
    first, *others = chunks
    if not others:
        return first
    *middle, last = others
    return first + "".join(f"(?>[^/]*?{chunk})" for chunk in middle) + "[^/]*" + last


def _files(root: Path) -> Iterator[tuple[str, int]]:
    """Relative path and size of each regular file; a folder that cannot be read is an error, not an omission."""

    def fail(error: OSError) -> None:
        raise error

    for at, _, names in os.walk(root, onerror=fail, followlinks=False):
        for name in names:
            entry = os.path.join(at, name)  # noqa: PTH118  a Path for each of a million files costs seconds
            status = os.lstat(entry)
            if stat.S_ISREG(status.st_mode):
                yield os.path.relpath(entry, root), status.st_size


def _blocks(path: bytes) -> Iterator[bytes]:
    # Neither a link nor a pipe that took the file's place since it was listed.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123  by descriptor
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"not a regular file any more: {os.fsdecode(path)}")
        while block := file.read(_BLOCK):
            yield block


def _line(sha256: str, name: bytes) -> bytes:
    r"""As `sha256sum` prints it: a name with a backslash or line break is escaped, and the line says so with a `\`."""
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"\\" if escaped != name else b"") + sha256.encode() + b"  " + escaped + b"\n"
