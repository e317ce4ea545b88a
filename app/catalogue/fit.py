"""Whether arguments fit what a worker of ours says of its task (`workers/contracts.py` has the shape). Pure.

A schema is a stranger's word: nothing in it may cost much or reach out. So patterns, formats and references to
elsewhere are not looked at, and a schema that makes no sense forbids nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    told = read(contract)
    return [] if told is None else told.misfits(args, kwargs)


def read(contract: Any) -> "Contract | None":
    """A contract, to be asked more than once; None for what is none."""
    try:
        definitions = _safe(contract.get("$defs", {}), names=True)
        return Contract(
            validators={
                str(name): Draft202012Validator({**_safe(schema), "$defs": definitions}, registry=Registry())
                for name, schema in contract["properties"].items()
            },
            positional=tuple(contract["positional"]),
            positional_only=frozenset(contract["positional_only"]),
            required=tuple(contract["required"]),
            more_by_name=bool(contract["additionalProperties"]),
            more_by_place=bool(contract["varargs"]),
        )
    except Exception:  # a wrong type somewhere
        return None


@dataclass(frozen=True, slots=True)
class Contract:
    """What a task takes, by name and by place."""

    validators: Mapping[str, Any]
    positional: tuple[str, ...]
    positional_only: frozenset[str]
    required: tuple[str, ...]
    more_by_name: bool
    more_by_place: bool

    def misfits(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[FieldError]:
        """As the function of this name."""
        faults: list[FieldError] = []
        given: dict[str, tuple[str, Any]] = {
            name: (f"/args/{place}", value)
            for place, (name, value) in enumerate(zip(self.positional, args, strict=False))
        }
        if len(args) > len(self.positional) and not self.more_by_place:
            faults.append(FieldError(f"/args/{len(self.positional)}", _takes(len(self.positional))))
        for name, value in kwargs.items():
            pointer = f"/kwargs/{_escaped(name)}"
            by_name = name in self.validators and name not in self.positional_only
            if by_name and name in given:
                faults.append(FieldError(pointer, f"is given already, as {given[name][0]}"))
            elif by_name:
                given[name] = (pointer, value)
            elif not self.more_by_name:
                known = ", ".join(one for one in self.validators if one not in self.positional_only) or "nothing"
                faults.append(FieldError(pointer, _cut(f"is no argument of the task, which takes by name: {known}")))
        faults += [FieldError(self._place_of(name), "is required") for name in self.required if name not in given]
        for name, (pointer, value) in given.items():
            for error in _errors(self.validators.get(name), value):
                path = "".join(f"/{_escaped(str(step))}" for step in error.absolute_path)
                faults.append(FieldError(f"{pointer}{path}", _sentence(error)))
        return faults[:_MOST_FAULTS]

    def _place_of(self, name: str) -> str:
        """Where an argument that is missing would stand."""
        if name in self.positional_only and name in self.positional:
            return f"/args/{self.positional.index(name)}"
        return f"/kwargs/{_escaped(name)}"


def _takes(count: int) -> str:
    if not count:
        return "the task takes no positional arguments"
    return f"the task takes at most {count} positional argument{'' if count == 1 else 's'}"


def _errors(validator: Any, value: Any) -> list[ValidationError]:
    try:
        return list(validator.iter_errors(value)) if validator is not None else []
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
