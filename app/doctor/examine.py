"""The judgements: each a pure function of the facts that yields findings."""

from collections.abc import Callable, Iterator
from typing import Final

from app.doctor.facts import Facts
from app.doctor.finding import Finding, in_order
from app.doctor.findings import consumers, delivery, parts, results, servers

CHECKS: Final[tuple[Callable[[Facts], Iterator[Finding]], ...]] = (
    *parts.CHECKS,
    *servers.CHECKS,
    *consumers.CHECKS,
    *delivery.CHECKS,
    *results.CHECKS,
)


def examine(facts: Facts) -> list[Finding]:
    """All that is to be said of these facts, the worst first."""
    return in_order([finding for check in CHECKS for finding in check(facts)])
