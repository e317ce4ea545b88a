"""`/openapi.json`: what FastAPI makes of the endpoints, with the problems that each of them declares."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.api.problems import MEDIA_TYPE

PROBLEM_SCHEMA: Final[dict[str, Any]] = {
    "title": "Problem",
    "description": "What went wrong (RFC 9457); `GET` of `type` explains it.",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "description": "with status 422: each value at fault",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {
                    "pointer": {
                        "type": "string",
                        "description": "JSON pointer into the body, `?name` for a query parameter, a header's name",
                    },
                    "detail": {"type": "string"},
                },
            },
        },
        "request_id": {"type": ["string", "null"]},
    },
}

_EXAMPLES: Final[dict[int, tuple[str, str, str]]] = {
    400: ("bad-request", "Bad request", "?cursor is not a cursor of this API; take `next_cursor` of a page as it is"),
    404: ("not-found", "Not found", "there is no job 019a8b7e-6c5d-7000-8000-000000000000"),
    409: ("name-taken", "Name taken", "the namespace 'default' has a job 'calc_post_score' already"),
    410: ("result-gone", "The result is gone", "the result had 31457280 bytes, more than 16777216 bytes"),
    412: ("precondition-failed", "Precondition failed", "the version is 4, not 3"),
    413: ("body-too-large", "Body too large", "the body is longer than 4194304 bytes"),
    415: ("unsupported-media-type", "Unsupported media type", "send the body as application/json, not as text/plain"),
    422: ("invalid", "Invalid value", '/trigger/expression: minute: "61" is not between 0 and 59'),
    503: ("unavailable", "Unavailable", "the database is away or busy; nothing was written, try again in a moment"),
}
_BODY_PROBLEMS: Final = (413, 415)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an endpoint that may answer with these problems; 422 and 503 are always among them."""
    return {status: problem(status) for status in sorted({*statuses, 422, 503})}


def writing(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The same for an endpoint that reads a body."""
    return problems(*statuses, 400, *_BODY_PROBLEMS)


def problem(status: int) -> dict[str, Any]:
    """The description of one problem as an answer."""
    name, title, detail = _EXAMPLES[status]
    example: dict[str, Any] = {"type": f"/problems/{name}", "title": title, "status": status, "detail": detail}
    if status == 422:
        pointer, _, sentence = detail.partition(": ")
        example["errors"] = [{"pointer": pointer, "detail": sentence}]
    example["request_id"] = "019a8b7e-0000-7000-8000-000000000000"
    return {
        "description": title,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}},
    }


def body_of(model: dict[str, Any] | str, *media_types: str, example: Any) -> dict[str, Any]:
    """An `openapi_extra` for an endpoint that reads its body itself."""
    schema = {"$ref": f"#/components/schemas/{model}"} if isinstance(model, str) else model
    content = {media_type: {"schema": schema, "example": example} for media_type in media_types}
    return {"requestBody": {"required": True, "content": content}}


def install(app: FastAPI) -> None:
    """Add what FastAPI does not know to the application's description."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            schemas = made["components"]["schemas"]
            schemas["Problem"] = PROBLEM_SCHEMA
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
