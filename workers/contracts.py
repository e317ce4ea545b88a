"""What the tasks of this worker take: signature, JSON Schema of the arguments, first words of the docstring.

The schema of a task describes its arguments by name, with three members of our own:

    {"type": "object", "properties": {name: schema}, "required": [...], "additionalProperties": bool, "$defs": {...},
     "positional": [names in order], "positional_only": [...], "varargs": bool}

`positional` are the parameters that take a positional argument, `additionalProperties` says whether there is a
`**kwargs`, `varargs` whether there is an `*args`. A parameter without an annotation, or with one that JSON Schema
cannot express, takes anything. `self` of a bound task is left out.
"""

import hashlib
import inspect
import re
from collections.abc import Iterable
from typing import Any, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model

from workers.log import log

_SIGNATURE_LIMIT: Final = 1000
_DOC_LIMIT: Final = 2048
_SCHEMA_LIMIT: Final = 32 * 1024

_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")
_POSITIONAL: Final = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
_VARIABLE: Final = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def contracts_of(tasks: Iterable[Any]) -> tuple[str, bytes]:
    """The contracts of Celery tasks as JSON `{name: {"signature", "schema", "doc"}}`, and the digest that names them.

    A task whose contract cannot be told is left out; schema and doc are null where there is none.
    """
    found: dict[str, bytes] = {}
    for task in tasks:
        try:
            told = orjson.dumps(contract_of(task.run), option=orjson.OPT_SORT_KEYS)
        except Exception as error:
            log.debug("contract_not_told", task=task.name, error=f"{type(error).__name__}: {error}")
            continue
        if rb"\u0000" not in told:
            found[task.name] = told
    body = b"{" + b",".join(orjson.dumps(name) + b":" + told for name, told in sorted(found.items())) + b"}"
    return hashlib.sha256(body).hexdigest()[:32], body


def contract_of(run: Any) -> dict[str, Any]:
    """What one function takes. Raises for what has no signature."""
    try:
        signature = inspect.signature(run, eval_str=True)
    except Exception:  # an annotation that names what only a type checker imports
        signature = inspect.signature(run)
    schema = _schema(signature)
    return {
        # Without the addresses of default values, which differ from process to process.
        "signature": _ADDRESS.sub("", str(signature))[:_SIGNATURE_LIMIT],
        "schema": schema if len(orjson.dumps(schema)) <= _SCHEMA_LIMIT else None,
        "doc": _first_paragraph(run),
    }


def _schema(signature: inspect.Signature) -> dict[str, Any]:
    named = [one for one in signature.parameters.values() if one.kind not in _VARIABLE]
    # One model for all, so that two classes of one name do not share a definition; its fields have names of ours,
    # for a parameter may be called as something that a model has.
    fields: dict[str, Any] = {
        f"p{number}": (_annotation(one), Field(alias=one.name)) for number, one in enumerate(named)
    }
    model: type[BaseModel] = create_model("Arguments", __config__=ConfigDict(arbitrary_types_allowed=True), **fields)
    told = model.model_json_schema(by_alias=True)
    properties = {
        name: {key: value for key, value in schema.items() if key != "title"}
        for name, schema in told.get("properties", {}).items()
    }
    kinds = {one.kind for one in signature.parameters.values()}
    schema: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "required": [one.name for one in named if one.default is inspect.Parameter.empty],
        "additionalProperties": inspect.Parameter.VAR_KEYWORD in kinds,
        "positional": [one.name for one in named if one.kind in _POSITIONAL],
        "positional_only": [one.name for one in named if one.kind is inspect.Parameter.POSITIONAL_ONLY],
        "varargs": inspect.Parameter.VAR_POSITIONAL in kinds,
    }
    if "$defs" in told:
        schema["$defs"] = told["$defs"]
    return schema


def _annotation(parameter: inspect.Parameter) -> Any:
    """The type that a parameter names, as far as JSON Schema can express it."""
    told = parameter.annotation
    if told is inspect.Parameter.empty or isinstance(told, str):
        return Any
    if parameter.default is None:
        told = told | None  # `x: int = None` takes None
    try:
        TypeAdapter(told, config=None).json_schema()
    except Exception:  # no schema for this one; the others have theirs
        return Any
    return told


def _first_paragraph(run: Any) -> str | None:
    text = (inspect.getdoc(run) or "").strip().partition("\n\n")[0]
    return text.encode("utf-8", "replace")[:_DOC_LIMIT].decode("utf-8", "ignore") or None
