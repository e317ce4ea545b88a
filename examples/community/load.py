"""Makes a plane have the queues and jobs of `jobs.yaml`: `python -m examples.community.load [--url URL] [FILE]`.

What is there and equal is left alone, so it may run with each deployment. Jobs that the file does not name stay.
It is here to show the requests; `jobplane apply` does this for any file, in one transaction.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import httpx
import yaml

JOBS = Path(__file__).parent / "jobs.yaml"


class Refused(Exception):
    """The plane does not take it; the text is a line for the one who wrote the file."""


def read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The lists `queues` and `jobs` of a file, each empty if it is not there."""
    document = yaml.safe_load(path.read_text()) or {}
    return {kind: document.get(kind) or [] for kind in ("queues", "jobs")}


def client(url: str) -> httpx.Client:
    """A client of the plane at this address; proxies are not asked."""
    return httpx.Client(base_url=f"{url}/api/v1", timeout=30, trust_env=False)


def load_queue(plane: httpx.Client, body: dict[str, Any]) -> str:
    """Make the queue, or change the members that differ: "made", "changed" or "unchanged"."""
    found = plane.get(f"/queues/{body['name']}")
    if found.status_code == 404:
        _accepted(plane.post("/queues", json=body), body)
        return "made"
    there = _accepted(found, body)
    differing = {name: value for name, value in body.items() if there.get(name) != value}
    if not differing:
        return "unchanged"
    _accepted(plane.patch(f"/queues/{body['name']}", json=differing), body)
    return "changed"


def load_job(plane: httpx.Client, body: dict[str, Any]) -> str:
    """Make the job, or put its definition: "made", "changed" or "unchanged". The plane knows which are equal."""
    named = {"namespace": body.get("namespace", "default"), "name": body["name"]}
    found = _accepted(plane.get("/jobs", params=named), body)["items"]
    if not found:
        _accepted(plane.post("/jobs", json=body), body)
        return "made"
    (there,) = found
    put = plane.put(f"/jobs/{there['id']}", json=body, headers={"If-Match": f'"{there["version"]}"'})
    return "unchanged" if _accepted(put, body)["version"] == there["version"] else "changed"


def load_queues(plane: httpx.Client, path: Path = JOBS) -> None:
    """All queues of the file, with a line for each. Refused, httpx.HTTPError."""
    for body in read(path)["queues"]:
        _say(f"queue {body['name']}: {load_queue(plane, body)}")


def load_jobs(plane: httpx.Client, path: Path = JOBS) -> None:
    """All jobs of the file, with a line for each. Refused, httpx.HTTPError."""
    for body in read(path)["jobs"]:
        _say(f"job {body.get('namespace', 'default')}/{body['name']}: {load_job(plane, body)}")


def _say(line: str) -> None:
    print(f"{line}\n", end="", flush=True)  # one write, for others print too


def _accepted(answer: httpx.Response, body: dict[str, Any]) -> Any:
    """What the plane answered. Refused with its reasons."""
    if answer.is_success:
        return answer.json()
    problem = answer.json() if "json" in answer.headers.get("content-type", "") else {"detail": answer.text}
    reasons = [f"{error['pointer']}: {error['detail']}" for error in problem.get("errors", [])]
    raise Refused(f"{body['name']}: {'; '.join(reasons) or problem.get('detail') or answer.status_code}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.community.load", description=__doc__)
    parser.add_argument("--url", default=os.environ.get("JOBPLANE_URL", "http://127.0.0.1:8000"))
    parser.add_argument("file", nargs="?", type=Path, default=JOBS)
    options = parser.parse_args()
    try:
        with client(options.url) as plane:
            load_queues(plane, options.file)
            load_jobs(plane, options.file)
    except (Refused, httpx.HTTPError, OSError) as error:
        sys.exit(f"not loaded: {error}")


if __name__ == "__main__":
    main()
