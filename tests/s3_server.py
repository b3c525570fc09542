"""A real S3 server for the tests, in a process of its own on loopback: SeaweedFS, which refuses a commit that races.

Endpoint and keys stand in the environment from the start, since a Ray that starts before the server hands them on.
"""
from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from pyarrow import fs

SERVER = Path(sys.executable).with_name("weed")
BUCKET = "bucket"
READER = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "secret-of-reader"}
"""Keys that may read the bucket and not write."""


def _listen() -> socket.socket:
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


_HELD = _listen()
"""Keeps the port until the server takes it."""
ENDPOINT = f"http://127.0.0.1:{_HELD.getsockname()[1]}"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "writer", "AWS_SECRET_ACCESS_KEY": "secret-of-writer", "AWS_REGION": "us-east-1",
               "AWS_ENDPOINT_URL": ENDPOINT, "AWS_EC2_METADATA_DISABLED": "true",
               "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
"""Nothing of the developer's own keys is left."""


def _identity(keys: dict[str, str], *actions: str) -> dict[str, object]:
    name, secret = keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"]
    return {"name": name, "credentials": [{"accessKey": name, "secretKey": secret}], "actions": list(actions)}


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of an empty bucket, for the time of the block."""
    identities = [_identity(ENVIRONMENT, "Admin", "Read", "Write", "List"),
                  _identity(READER, f"Read:{BUCKET}", f"List:{BUCKET}")]
    (folder / "identities.json").write_text(json.dumps({"identities": identities}))
    with ExitStack() as stack:
        names = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3.grpc")
        held = {name: stack.enter_context(closing(_listen())) for name in names}
        ports = {name: one.getsockname()[1] for name, one in held.items()}
    ports["s3"] = _HELD.getsockname()[1]
    _HELD.close()
    flags = [f"-{name}.port={port}" if "." not in name else f"-{name.split('.')[0]}.port.grpc={port}"
             for name, port in ports.items()]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([
            str(SERVER), "-logtostderr=true", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *flags,
            "-s3", f"-s3.config={folder / 'identities.json'}", "-s3.iam=false", "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=100", "-master.volumeSizeLimitMB=64",
            "-volume.preStopSeconds=0"], stdout=log, stderr=log)
    try:
        _make_bucket(process, folder / "log")
        yield f"s3://{BUCKET}"
    finally:
        process.kill()
        process.wait()


def _make_bucket(process: subprocess.Popen[bytes], log: Path) -> None:
    """Make the bucket, and an object in it, as soon as the server can."""
    system = fs.S3FileSystem(
        access_key=ENVIRONMENT["AWS_ACCESS_KEY_ID"], secret_key=ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
        endpoint_override=ENDPOINT, region=ENVIRONMENT["AWS_REGION"], allow_bucket_creation=True)
    for _ in range(120):
        assert process.poll() is None, log.read_text()
        try:
            system.create_dir(BUCKET)
            with system.open_output_stream(f"{BUCKET}/ready") as ready:
                ready.write(b"ready")
            return
        except OSError:
            time.sleep(0.25)
    raise TimeoutError(log.read_text())


def upload(folder: Path, address: str) -> str:
    """Copy the files below a folder to an address of the bucket, which is returned."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        put(f"{address}/{file.relative_to(folder)}", file.read_bytes())
    return address


def put(address: str, content: bytes) -> None:
    """Write an object under a key as it stands."""
    system, _ = fs.FileSystem.from_uri(f"s3://{BUCKET}")
    with system.open_output_stream(address.removeprefix("s3://"), compression=None) as stream:
        stream.write(content)
