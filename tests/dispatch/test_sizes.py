"""How large a message is: said when it is saved as when it is sent."""

from typing import Any

import pytest

from app.dispatch.message import too_large
from app.schedule.sizes import message_bytes
from tests.dispatch.parts import message


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ([], {}),
        ([1, 2.5, None, True], {"a": [{"b": "c"}]}),
        (["héllo ☃ 😀", '"\\\n\t\x7f'], {"ключ": "значение"}),
        ([1e300, -0.0, 2**62, 1e-7], {"deep": [[[[]]]]}),
        (["x" * 5000], {}),
    ],
)
def test_what_is_measured_at_save_is_the_body_that_is_sent(args: list[Any], kwargs: dict[str, Any]) -> None:
    assert message_bytes(args, kwargs) == len(message("q", args=args, kwargs=kwargs).body)


@pytest.mark.parametrize(
    ("size", "limit_kib", "says"),
    [
        (1024, 1, None),
        (1025, 1, "the message of 2 KiB is larger than the queue's limit of 1 KiB"),
        (10_000, None, None),
    ],
)
def test_the_limit_of_a_queue(size: int, limit_kib: int | None, says: str | None) -> None:
    made = message("q", args=["x" * (size - message_bytes([""], {}))])
    assert len(made.body) == size
    assert too_large(made, limit_kib) == says
