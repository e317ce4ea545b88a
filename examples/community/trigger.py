"""Runs a job now: `python -m examples.community.trigger forum/post-score` prints the id of the run."""

import argparse
import os
import sys

import httpx

from examples.community.load import client


def trigger(plane: httpx.Client, namespace: str, name: str) -> str:
    """The id of the new run of this job. LookupError, httpx.HTTPError."""
    found = plane.get("/jobs", params={"namespace": namespace, "name": name}).raise_for_status().json()["items"]
    if not found:
        raise LookupError(f"there is no job {namespace}/{name}")
    made = plane.post(f"/jobs/{found[0]['id']}/trigger").raise_for_status()
    return str(made.json()["id"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.community.trigger", description=__doc__)
    parser.add_argument("--url", default=os.environ.get("JOBPLANE_URL", "http://127.0.0.1:8000"))
    parser.add_argument("job", help="namespace/name")
    options = parser.parse_args()
    namespace, _, name = options.job.partition("/")
    try:
        with client(options.url) as plane:
            print(trigger(plane, namespace, name))
    except (LookupError, httpx.HTTPError) as error:
        sys.exit(f"not triggered: {error}")


if __name__ == "__main__":
    main()
