"""`jobplane doctor`: looks at a plane and says what will bite."""

import asyncio
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

import orjson
from rich.console import Console
from rich.text import Text

from app import log
from app.doctor.examine import examine
from app.doctor.facts import Facts
from app.doctor.finding import LEVELS, Finding, Level, status
from app.doctor.findings.words import counted
from app.doctor.gather import gather
from app.settings import Settings

_STYLES: Final[dict[Level, str]] = {"error": "bold red", "warning": "bold yellow", "note": "bold blue"}


def doctor(settings: Settings, *, as_json: bool = False, console: Console | None = None) -> int:
    """Look at everything, say what was found on standard output, and return the exit status."""
    # What parts say while they are asked stands in the findings already.
    log.configure(settings.model_copy(update={"log_level": "error"}), "doctor")
    # aio-pika tries to close a connection that never came about once more, when the loop has ended.
    warnings.filterwarnings("ignore", ".*was never awaited", RuntimeWarning)
    facts = asyncio.run(gather(settings))
    findings = examine(facts)
    console = console or Console(highlight=False, soft_wrap=True)
    if as_json:
        console.file.write(orjson.dumps([asdict(finding) for finding in findings], option=orjson.OPT_INDENT_2).decode())
        console.file.write("\n")
    else:
        show(console, facts, findings)
    return status(findings)


def show(console: Console, facts: Facts, findings: Sequence[Finding]) -> None:
    """The findings for people, and what was looked at."""
    for finding in findings:
        console.print(Text.assemble((finding.level, _STYLES[finding.level]), f" {finding.code} · {finding.subject}"))
        console.print(Text(f"  {finding.says}"))
        console.print(Text(f"  → {finding.do}\n"))
    looked = [
        counted(len(facts.serving()), "worker", "workers"),
        counted(len(facts.queues), "queue", "queues"),
        counted(len(facts.store.schedulers) if facts.store else 0, "scheduler", "schedulers"),
    ]
    found = [
        counted(number, level, f"{level}s")
        for level in LEVELS
        if (number := sum(finding.level == level for finding in findings))
    ]
    verdict = ", ".join(found) if found else "Sound"
    console.print(Text(f"{verdict}. Looked at {', '.join(looked)}."))
