"""`files.digest` says what the shell says."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from workers.tasks.files import digest_folder, folder, matcher

# As the task's docstring gives it.
SHELL = r"(cd {} && find . -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0 -r sha256sum --) | sha256sum"


def shell(root: Path) -> str:
    done = subprocess.run(["sh", "-c", SHELL.format(root)], capture_output=True, text=True, check=True)
    return done.stdout.split()[0]


def digest(root: Path, pattern: str = "**/*") -> tuple[dict[str, object], list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []
    return digest_folder(root, matcher(pattern), report=lambda *at: told.append(at)), told


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "b" / "deep").mkdir(parents=True)
    (root / "a.txt").write_text("a")
    (root / "b.d").mkdir()
    (root / "b.d" / "x").write_bytes(b"")
    (root / "b" / "x.csv").write_bytes(os.urandom(3 * 1024**2 + 17))
    (root / "b" / "deep" / "y.csv").write_text("y")
    (root / "-dash").write_text("dash")
    (root / "line\nbreak").write_text("1")
    (root / "back\\slash").write_text("2")
    (root / "ümlaut").write_text("3")
    (root / ".hidden").write_text("4")
    (root / os.fsdecode(b"not-\xff-text")).write_text("5")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (root / "link").symlink_to(outside)
    (root / "link.txt").symlink_to(outside / "secret")
    return root


def test_digest_is_the_shells(tree: Path) -> None:
    result, told = digest(tree)
    assert result["sha256"] == shell(tree)
    size = 3 * 1024**2 + 17 + 1 + 0 + 1 + 4 + 1 + 1 + 1 + 1 + 1
    assert (result["files"], result["bytes"]) == (10, size)
    assert told[0] == (0, size)
    assert told[-1] == (size, size)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_docstring_gives_the_command() -> None:
    from workers.tasks import files

    assert SHELL.format("DIR") in (files.digest.__doc__ or "")


def test_empty_folder(tmp_path: Path) -> None:
    assert digest(tmp_path)[0] == {"files": 0, "bytes": 0, "sha256": shell(tmp_path)}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("**/*", {"a.txt", "b/x.csv", "b/deep/y.csv", "c[1].py"}),
        ("*", {"a.txt", "c[1].py"}),
        ("**/*.csv", {"b/x.csv", "b/deep/y.csv"}),
        ("*/*.csv", {"b/x.csv"}),
        ("b/**", {"b/x.csv", "b/deep/y.csv"}),
        ("**/deep/?.csv", {"b/deep/y.csv"}),
        ("[ab].txt", {"a.txt"}),
        ("[!b].txt", {"a.txt"}),
        ("c[[]1].py", {"c[1].py"}),
        ("a.t.t", set()),
    ],
)
def test_patterns(pattern: str, names: set[str]) -> None:
    matches = matcher(pattern)
    assert {name for name in ("a.txt", "b/x.csv", "b/deep/y.csv", "c[1].py") if matches(name)} == names


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [("", ValueError), ("/a", ValueError), ("../a", ValueError), ("a**/b", ValueError), (None, TypeError)],
)
def test_wrong_pattern_is_named(pattern: object, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"^pattern: "):
        matcher(pattern)


def test_wrong_path_is_named(tmp_path: Path, tree: Path) -> None:
    for value in (3, None, ["a"]):
        with pytest.raises(TypeError, match=r"^path: must be a string"):
            folder(value, None)
    for text in ("", "relative", "a\0b", str(tmp_path / "none"), str(tree / "a.txt")):
        with pytest.raises(ValueError, match=r"^path: "):
            folder(text, None)
    for text in ("..", str(tmp_path), str(tree / "link"), "/"):
        with pytest.raises(ValueError, match=r"^path: not below"):
            folder(text, tree)
    assert folder("b/../b", tree) == tree / "b"
    assert folder(str(tree), tree) == tree


def test_file_that_cannot_be_read_is_an_error(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.walk

    def walk(*args: object, **kwargs: object):  # type: ignore[no-untyped-def]
        yield from real(*args, **kwargs)  # type: ignore[call-overload]
        (tree / "a.txt").unlink()  # gone between the list and the reading

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(FileNotFoundError, match=r"a\.txt"):
        digest(tree)


def test_no_pattern_takes_long() -> None:
    """The body holds the interpreter's lock while it matches: a pattern that backtracks would end the lease."""
    begin = time.thread_time()
    assert not matcher("a*" * 40 + "b")("a" * 250)
    assert not matcher("**/a*a*a*a*a*a*a*a*b")("/".join(["a" * 60] * 60))
    assert time.thread_time() - begin < 5, "seconds, where backtracking takes years"
    with pytest.raises(ValueError, match="pattern: more than two"):
        matcher("**/a/**/b/**/c")
    assert matcher("**/**/**/c")("a/c")


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("a*b*c", "axxbyyc", True),
        ("a*b*c", "axxbyyb", False),
        ("*ab", "aab", True),
        ("*a*a", "aa", True),
        ("*a*a", "a", False),
        ("d*/**/f?[0-9].t*t", "dir/a/b/fx1.txt", True),
        ("*.csv", "x/a.csv", False),
    ],
)
def test_stars(pattern: str, path: str, fits: bool) -> None:
    assert matcher(pattern)(path) is fits
