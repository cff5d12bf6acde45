"""Real servers in processes of their own: moto's S3, HTTP with parts of files, and the standard library's without."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import obstore

from losa_cache.cache.stores.remote import RemotePath

BUCKET = "caches"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "se-cr-et",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


@contextmanager
def running(*command, **environment):
    """A process, for a while; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=dict(os.environ) | environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def free_port():
    """A port that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port):
    """Wait until something listens."""
    for _ in range(600):
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(port)


@contextmanager
def s3_server(*buckets, **environment):
    """moto's server with its buckets; gives its address."""
    port = free_port()
    with running("-m", "moto.server", "-p", str(port), **environment):
        wait_for(port)
        for bucket in buckets:
            make = urllib.request.Request(f"http://127.0.0.1:{port}/{bucket}", method="PUT")
            make.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=a/20200101/us-east-1/s3/aws4_request")
            urllib.request.urlopen(make).close()
        yield f"http://127.0.0.1:{port}"


@contextmanager
def http_server(folder, **options):
    """The server of parts of files; gives its address."""
    script = str(Path(__file__).with_name("range_server.py"))
    with running(script, str(folder), *(f"{name}={value}" for name, value in options.items())) as process:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"


@contextmanager
def plain_http_server(folder):
    """The standard library's server, which ignores that a part is asked for."""
    port = free_port()
    with running("-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)):
        wait_for(port)
        yield f"http://127.0.0.1:{port}"


def upload(folder, url):
    """Copy a folder's files below a URL, as any tool would."""
    target = RemotePath.parse(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            key = f"{target.key}/{path.relative_to(folder).as_posix()}"
            obstore.put(target.store, key, path.read_bytes())
