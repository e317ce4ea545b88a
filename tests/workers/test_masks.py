"""Secrets are masked by their shape, in linear time, and prose is left alone."""

import time

import pytest

from workers.masks import MASK, Masker, compiled


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("redis://:hunter2@host:6379/0", "redis://:***@host:6379/0"),
        ("at amqp://guest:p%40ss@mq//vhost, again", "at amqp://guest:***@mq//vhost, again"),
        ("postgresql+asyncpg://u:p@ss@db/x", "postgresql+asyncpg://u:***@db/x"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer ***"),
        ("{'Authorization': 'Basic dXNlcjpwYXNz', 'Accept': 'x'}", "{'Authorization': 'Basic ***', 'Accept': 'x'}"),
        ('-H "authorization: token ghp_1234"', '-H "authorization: token ***"'),
        ("sent bearer eyJhbGciOiJIUzI1NiJ9.e30.x", "sent bearer ***"),
        ("password=hunter2 user=x", "password=*** user=x"),
        ("DB_PASSWORD=hunter2", "DB_PASSWORD=***"),
        ("?api_key=abc&x=1", "?api_key=***&x=1"),
        ('{"password": "a b\\"c", "x": 1}', '{"password": "***", "x": 1}'),
        ("{'client_secret': 'a', 'x': 1}", "{'client_secret': '***', 'x': 1}"),
        ("login(token=b'abc')", "login(token=b'***')"),
        (r'"{\"token\": \"a b\", \"x\": 1}"', r'"{\"token\": \"***\", \"x\": 1}"'),
        ("X-Api-Key: abc", "X-Api-Key: ***"),
        ("X-Auth-Token: Bearer eyJhbGciOiJIUzI1NiJ9.e30.x", "X-Auth-Token: *** ***"),
        ("password: hunter2", "password: ***"),
        ("password: rabbit", "password: ***"),
        ("aws_secret_access_key = wJalrXUtn/K7", "aws_secret_access_key = ***"),
        ("id AKIAIOSFODNN7EXAMPLE.", "id ***."),
        (
            r"k='-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----' z",
            "k='-----BEGIN RSA PRIVATE KEY-----***-----END RSA PRIVATE KEY-----' z",
        ),
    ],
)
def test_a_secret_is_masked(text: str, masked: str) -> None:
    assert Masker().line(text) == masked
    assert Masker().line(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://host:8000/a@b",
        "a token of thanks, and the password of the day",
        "total_tokens=500 keys=3 key=4",
        "the bearer of news",
        "monkey: 5",
        "12:30: 5 of 10",
        "-----BEGIN CERTIFICATE-----",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert Masker().line(text) == text


def test_a_private_key_over_many_lines() -> None:
    said = [
        "-----BEGIN PRIVATE KEY-----",
        "Proc-Type: 4,ENCRYPTED",
        "",
        "MIIEvQIBADANBg+/w0",
        "AAAA==",
        "-----END PRIVATE KEY-----",
    ]
    masker = Masker()
    told = [masker.line(line) for line in [*said, "and on it goes"]]
    assert told == [said[0] + MASK, *[MASK] * 4, said[-1], "and on it goes"]
    assert masker.line("AAAA") == "AAAA"


def test_a_private_key_that_never_ends_hides_no_log() -> None:
    masker = Masker()
    masker.line("-----BEGIN PRIVATE KEY-----")
    assert masker.line("MIIE") == MASK
    assert masker.line("step 1 of 2 done.") == "step 1 of 2 done."
    assert masker.line("MIIE") == "MIIE"


def test_own_patterns() -> None:
    masker = Masker(compiled(r"CARD-\d{4,8}, (?i)iban \w+"))
    assert masker.line("CARD-123456 and IBAN DE02 and CARD-1") == "*** and *** and CARD-1"
    assert [pattern.pattern for pattern in compiled("a,b\n c \n\n")] == ["a,b", "c"]
    assert compiled(" ") == ()


@pytest.mark.parametrize("wrong", ["(", "ok,[a", "a*", "x|"])
def test_a_wrong_pattern_is_named(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"not a regular expression|empty text"):
        compiled(wrong)


@pytest.mark.parametrize(
    "piece",
    [
        "a", "://", "://a:", "x://u:p", "password=", "password=\\", 'password="\\', "password='", 'token\\":\\"',
        "secret:  ",
        "authorization: ", "authorization=a ", "bearer ", "bearer a", "-----BEGIN ", "-----BEGIN A PRIVATE KEY-----",
        "AKIA", "\\", '"', "key=\\\"a\\\\\\", "passwd:b'",
    ],
)  # fmt: skip
def test_a_line_of_a_mebibyte_takes_linear_time(piece: str) -> None:
    text = (piece * (1024 * 1024 // len(piece) + 1)) + "@"
    start = time.process_time()
    Masker().line(text)
    Masker().line("password=" + text)
    assert time.process_time() - start < 5  # quadratic would be minutes
