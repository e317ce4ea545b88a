"""A file of jobs, YAML or JSON, with the lines that its members stand in."""

import datetime
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from app.jobfiles.refusals import Refused

#: Longest file that is read; the plane takes no longer body.
MOST_BYTES: Final = 4 * 1024 * 1024
_TEXT: Final = "tag:yaml.org,2002:str"
_MERGE: Final = "tag:yaml.org,2002:merge"


@dataclass(frozen=True, slots=True)
class File:
    """What a file says, as plain JSON values, and where."""

    name: str
    document: dict[str, Any]
    root: yaml.Node

    def place(self, pointer: str) -> str:
        """`FILE:LINE` of the member that a JSON pointer names, or of what is nearest around it."""
        line, node = self.root.start_mark.line, self.root
        for part in pointer.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            found = _member(node, name)
            if found is None:
                break
            line, node = found
        return f"{self.name}:{line + 1}"


def read(path: str) -> File:
    """The file of this name; `-` is the standard input. Refused, with the line at fault."""
    name = "stdin" if path == "-" else path
    try:
        raw = sys.stdin.buffer.read(MOST_BYTES + 1) if path == "-" else Path(path).read_bytes()
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{name}: {error}") from None
    if len(raw) > MOST_BYTES:
        raise Refused(f"{name}: is longer than {MOST_BYTES} bytes")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Refused(f"{name}:{mark.line + 1 if mark else 1}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # 2026-02-31 is a ValueError
        raise Refused(f"{name}: {error}") from None
    if root is None or not isinstance(document, dict):
        raise Refused(f"{name}: must be a mapping with `jobs`, a list")
    _check_names(name, root)
    try:
        return File(name, json.loads(json.dumps(document, allow_nan=False, default=_written)), root)
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused(f"{name}: cannot be sent as JSON: {error}") from None


def _check_names(name: str, root: yaml.Node) -> None:
    """Refused for a member that is there twice, or whose name YAML takes for something else than a text."""
    left, met = [root], set()
    while left:
        node = left.pop()
        if id(node) in met:
            continue
        met.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            left += node.value
        elif isinstance(node, yaml.MappingNode):
            names: set[str] = set()
            for key, value in node.value:
                place = f"{name}:{key.start_mark.line + 1}"
                if key.tag not in {_TEXT, _MERGE}:
                    raise Refused(f"{place}: the name `{key.value}` is no text in YAML; put it in quotes")
                if key.value in names:
                    raise Refused(f"{place}: `{key.value}` is there twice")
                names.add(key.value)
                left.append(value)


def _member(node: yaml.Node, name: str) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == name:
                return key.start_mark.line, value
    elif isinstance(node, yaml.SequenceNode) and name.isdecimal() and int(name) < len(node.value):
        return node.value[int(name)].start_mark.line, node.value[int(name)]
    return None


def _written(value: object) -> str:
    if isinstance(value, datetime.date):  # an instant too
        return value.isoformat()
    raise TypeError(f"{value!r} is neither a text nor a number, list or mapping")
