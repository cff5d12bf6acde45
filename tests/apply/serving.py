"""A server in a thread of the tests' process, and requests to it."""

import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from time import monotonic, sleep

import pytest
from PIL import Image

import losa_cache as lc
from losa_cache.apply.serve.config import ServeConfig
from losa_cache.apply.serve.listen import bind, start
from losa_cache.apply.serve.server import make_server
from losa_cache.apply.serve.service import Service
from losa_cache.extract.extract import extract
from tests.conftest import tiny_backbone, tiny_samples

MARKUP = "<img src=x onerror=document.title='run'>"
CLASSES = ("ant", "bee", MARKUP, "dog", "eel", "fox")
KINDS = {"first": {"rank": 2}, "second": {"rank": 3, "seed": 5}, "third": {"side": "mlp", "rank": 2}}


def make_adapters(folder):
    """Train an adapter of each kind, in folders of these names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOSA_CACHE_HOME", str(folder / "home"))
        samples = replace(tiny_samples(), classes=CLASSES)
        cache = extract(
            tiny_backbone(), samples, precision="float32", device="cpu", out=folder / "train.zarr", embedding=True
        )
        for name, options in KINDS.items():
            lc.train(cache, epochs=2, lr=0.01, device="cpu", out=folder / name, **options)


def load(folder, names=KINDS):
    return {name: lc.load_adapter(folder / name, device="cpu") for name in names}


@contextmanager
def serving(adapters, *, backbone=None, **options):
    """A running server of a backbone, by default the tiny one: its port, and the service behind it."""
    service = Service(backbone or tiny_backbone(), adapters, ServeConfig(port=0, **options))
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    start(listener)
    server = make_server(service, local=True)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield port, service
    finally:
        server.should_exit = True
        thread.join()
        service.close()


def ask(port, path, body=None, *, method=None, headers=(), **more):
    """Send a request: status, what the JSON says (or text), headers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, dict(headers), **more)
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    is_json = response.headers["content-type"] == "application/json"
    return response.status, json.loads(content) if is_json else content.decode(), response.headers


def at_once(calls):
    """Call them all in threads of their own."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def until(condition):
    """Wait for something that will be so in a moment."""
    end = monotonic() + 20
    while not condition():
        assert monotonic() < end
        sleep(0.005)


def png(image, kind="PNG", **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pictures(count=17):
    samples = tiny_samples(count, split="test")
    return [samples.load(place) for place in range(count)]


def grey(size=(20, 20)):
    return Image.new("RGB", size, (128, 128, 128))
