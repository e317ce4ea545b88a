"""Stores to write to: a folder, and moto's server, which imitates S3."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from app.logs.store import Store


@pytest.fixture(scope="module")
def imitated_s3() -> Iterator[str]:
    """A bucket at an imitation of S3 that runs in this process; its URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "imitation")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "imitation")
        patch.setenv("AWS_REGION", "us-east-1")
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/logs", method="PUT")).close()
        yield "s3://logs/of/runs"
    server.stop()


@pytest.fixture(params=["folder", "imitated_s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return (tmp_path / "kept here").as_uri()
    url: str = request.getfixturevalue("imitated_s3")
    return url


@pytest.fixture
def store(store_url: str) -> Store:
    return Store(store_url)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "folder"


@pytest.fixture
def folder_store(folder: Path) -> Store:
    return Store(folder.as_uri())
