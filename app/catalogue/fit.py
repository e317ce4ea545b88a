"""Whether arguments fit what a worker of ours says of its task (`workers/contracts.py` has the shape). Pure.

A schema is a stranger's word: nothing in it may cost much or reach out. So patterns, formats and references to
elsewhere are not looked at, and a schema that makes no sense forbids nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from referencing import Registry

from app.errors import FieldError

_MOST_FAULTS: Final = 10
_DETAIL_LIMIT: Final = 300

_LEFT_OUT: Final = {"pattern", "patternProperties", "format", "$id", "$anchor", "$schema", "$dynamicRef"}
#: Members whose own members have names of somebody's choice.
_NAMED: Final = {"properties", "$defs"}
_VALUES: Final = {"enum", "const", "default", "examples"}
#: Written as text, and understood as a number too.
_ALSO_NUMBERS: Final = {"date-time", "date", "time", "duration"}


def misfits(contract: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[FieldError]:
    """What of these arguments cannot fit, with pointers such as `/args/0` and `/kwargs/since`; at most ten.

    `contract` is the member `schema` of a contract; one that cannot be read forbids nothing.
    """
    try:
        return _misfits(contract, args, kwargs)[:_MOST_FAULTS]
    except Exception:
        # Of a schema that is none: a wrong type somewhere, a reference to nothing or to itself.
        return []


def _misfits(contract: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[FieldError]:
    properties: Mapping[str, Any] = contract["properties"]
    positional: list[str] = list(contract["positional"])
    only = set(contract["positional_only"])
    faults: list[FieldError] = []
    given: dict[str, tuple[str, Any]] = {
        name: (f"/args/{place}", value) for place, (name, value) in enumerate(zip(positional, args, strict=False))
    }
    if len(args) > len(positional) and not contract["varargs"]:
        takes = f"at most {len(positional)}" if positional else "no"
        plural = "" if len(positional) == 1 else "s"
        faults.append(FieldError(f"/args/{len(positional)}", f"the task takes {takes} positional argument{plural}"))
    for name, value in kwargs.items():
        pointer = f"/kwargs/{_escaped(name)}"
        if name in given and name not in only:
            faults.append(FieldError(pointer, f"is given already, as {given[name][0]}"))
        elif name in properties and name not in only:
            given[name] = (pointer, value)
        elif not contract["additionalProperties"]:
            known = ", ".join(one for one in properties if one not in only) or "none"
            faults.append(FieldError(pointer, _cut(f"is no argument of the task; by name it takes: {known}")))
    for name in contract["required"]:
        if name not in given:
            pointer = f"/args/{positional.index(name)}" if name in only else f"/kwargs/{_escaped(name)}"
            faults.append(FieldError(pointer, f"is required: the task has no default for {name}"))
    definitions = _safe(contract.get("$defs", {}), names=True)
    for name, (pointer, value) in given.items():
        validator = Draft202012Validator({**_safe(properties[name]), "$defs": definitions}, registry=Registry())
        for error in _errors(validator, value):
            path = "".join(f"/{_escaped(str(step))}" for step in error.absolute_path)
            faults.append(FieldError(f"{pointer}{path}", _sentence(error)))
    return faults


def _errors(validator: Any, value: Any) -> list[ValidationError]:
    try:
        return list(validator.iter_errors(value))
    except Exception:
        return []  # the schema of this argument is none; the others have theirs


def _safe(schema: Any, *, names: bool = False) -> Any:
    """The schema without what is not looked at."""
    if isinstance(schema, list):
        return [_safe(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if names:
        return {name: _safe(one) for name, one in schema.items()}
    found: dict[str, Any] = {}
    for name, value in schema.items():
        if name in _LEFT_OUT or (name == "$ref" and not str(value).startswith("#/$defs/")):
            continue
        found[name] = value if name in _VALUES else _safe(value, names=name in _NAMED)
    if schema.get("format") in _ALSO_NUMBERS and schema.get("type") == "string":
        found["type"] = ["string", "number"]
    return found


def _sentence(error: ValidationError) -> str:
    if error.validator == "type":
        kinds = error.validator_value
        told = " or ".join(kinds) if isinstance(kinds, list) else str(kinds)
        return _cut(f"must be of the type {told}")
    if error.validator in {"anyOf", "oneOf"}:
        kinds = [one.get("type", "another") for one in cast(Any, error.validator_value) if isinstance(one, dict)]
        return _cut(f"fits none of what the task takes here: {', '.join(map(str, kinds))}")
    if error.validator in {"enum", "const"}:
        return _cut(f"must be {error.validator_value!r}" if error.validator == "const" else f"{error.message}")
    return _cut(str(error.message))


def _cut(text: str) -> str:
    return text if len(text) <= _DETAIL_LIMIT else text[: _DETAIL_LIMIT - 1] + "…"


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
