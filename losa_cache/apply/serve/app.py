"""The routes of the server."""

import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import losa_cache
from losa_cache.apply.serve.answers import EMBED, PREDICT
from losa_cache.apply.serve.guard import App, Guard
from losa_cache.apply.serve.page import Page
from losa_cache.apply.serve.refused import RefusedError
from losa_cache.apply.serve.service import Service
from losa_cache.outside import UnreadableError, parse_json
from losa_cache.train.trained_adapter import TrainedAdapter

log = logging.getLogger(__name__)

MOST_TOP_K, MOST_FIELDS = 1000, 8
PAGES = Path(__file__).parent


class NewAdapter(msgspec.Struct, forbid_unknown_fields=True):
    """What adds an adapter.

    Attributes:
        folder: its path below the server's folder of adapters.
        name: that it gets; by default the folder's.
    """

    folder: str
    name: str | None = None


IMAGE = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}}}
            },
        },
    }
}
ADAPTER = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["folder"],
                    "properties": {"folder": {"type": "string"}, "name": {"type": "string"}},
                }
            }
        },
    }
}
Names = Annotated[
    list[str] | None, Query(alias="adapter", description="An adapter; give it several times for several. Default: all.")
]
TopK = Annotated[int, Query(ge=1, le=MOST_TOP_K, description="Answers of each adapter, the likeliest first.")]


def make_app(service: Service, *, local: bool) -> App:
    """Make the ASGI application.

    Args:
        service: that answers.
        local: whether only this machine can connect: then changes are taken under its own names alone, so that no web
            page in a browser here can ask for them under a name that it has pointed at this machine.
    """
    app = FastAPI(
        title="losa-cache",
        version=losa_cache.__version__,
        description=f"One frozen backbone, {service.backbone.name}, and its adapters.",
        docs_url=None,  # their scripts would come from elsewhere
        redoc_url=None,
        responses={"4XX": _told("What is wrong with the request, in one sentence.", {"error": "..."})},
    )
    _refuse_in_sentences(app)
    _answer_images(app, service)
    _keep_adapters(app, service, local)
    _tell_of_itself(app, service)
    config = service.config
    return Guard(app, service.metrics, max_body=config.max_body, seconds=config.timeout)


def _answer_images(app: FastAPI, service: Service) -> None:
    predicted = {"predictions": {"birds": [{"rank": 1, "class": "robin", "probability": 0.93}]}}

    @app.post("/predict", openapi_extra=IMAGE, responses={200: _told("Answers by adapter.", predicted)})
    async def predict(request: Request, adapter: Names = None, top_k: TopK = 5) -> Response:
        """Predict an image, which is the body of the request, or a file of a form."""
        return _json({"predictions": await service.answer(PREDICT, _image_of(request), adapter, top_k)})

    vectors = {"features": {"birds": [0.12, -1.3]}}

    @app.post("/embed", openapi_extra=IMAGE, responses={200: _told("Feature vectors by adapter.", vectors)})
    async def embed(request: Request, adapter: Names = None) -> Response:
        """Give the refined feature vectors of an image."""
        return _json({"features": await service.answer(EMBED, _image_of(request), adapter, 1)})


def _keep_adapters(app: FastAPI, service: Service, local: bool) -> None:
    listed = {"adapters": [{"name": "birds", "task": "classification", "classes": 200, "features": 768}]}

    @app.get("/adapters", responses={200: _told("All adapters.", listed)})
    async def adapters() -> Response:
        """List the adapters."""
        return _json({"adapters": [_described(name, own) for name, own in service.adapters.items()]})

    @app.post(
        "/adapters",
        status_code=201,
        openapi_extra=ADAPTER,
        responses={201: _told("It was added.", listed["adapters"][0])},
    )
    async def add(request: Request) -> Response:
        """Add an adapter from the folder that the server was started with (`--adapter-dir`)."""
        _require_own(request, local)
        try:
            new = parse_json(await request.body(), NewAdapter)
        except UnreadableError as error:
            raise RefusedError(
                422, f'the body cannot be read: {error}. Send {{"folder": ..., "name": ...}}.'
            ) from error
        name = await service.add(new.folder, new.name)
        return _json(_described(name, service.adapters[name]), 201)

    @app.delete("/adapters/{name}", responses={200: _told("It was removed.", {"removed": "birds"})})
    async def remove(request: Request, name: str) -> Response:
        """Remove an adapter."""
        _require_own(request, local)
        await service.remove(name)
        return _json({"removed": name})


def _tell_of_itself(app: FastAPI, service: Service) -> None:
    page, reference = Page(PAGES / "page.html"), Page(PAGES / "reference.html")

    @app.get("/health", responses={200: _told("It works.", {"status": "ok", "backbone": "vit_b", "adapters": 2})})
    async def health() -> Response:
        """Tell whether the server works, and how many requests it has not answered yet."""
        status = "ok" if service.healthy else "ending"
        told = {"status": status, "backbone": service.backbone.name, "adapters": len(service.adapters)}
        return _json({**told, "waiting": service.inside}, 200 if service.healthy else 503)

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' text format."}})
    def metrics() -> Response:
        """Tell what was counted, for Prometheus."""
        return Response(service.metrics.text(), media_type=service.metrics.content_type)

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return page.response()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return reference.response()


def _refuse_in_sentences(app: FastAPI) -> None:
    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
        return _refusal(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = str(first["loc"][-1]).replace("_", "-")
        return _refusal(RefusedError(422, f"{name} is {first.get('input')!r:.60}: {str(first['msg']).lower()}."))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        path = request.url.path[:200]
        known = {
            404: f"there is nothing at {path!r}: /docs lists what is there.",
            405: f"{path!r} does not take {request.method}: /docs says what it takes.",
        }
        sentence = known.get(error.status_code, f"the request cannot be read: {error.detail}")
        return _refusal(RefusedError(error.status_code, sentence, error.headers))

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> Response:
        return _refusal(RefusedError(400, "the connection ended before the request did: send it again."))

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:  # its traceback is logged
        return _refusal(RefusedError(500, "the server could not answer: its log says why."))


def _refusal(refused: RefusedError) -> Response:
    return _json({"error": refused.sentence}, refused.status, refused.headers)


def _json(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    try:
        body = msgspec.json.encode(content)
    except UnicodeEncodeError:  # a name of bytes that are no text, as file systems have them
        body = json.dumps(content).encode()
    return Response(body, status, headers, "application/json")


def _told(description: str, example: dict[str, Any]) -> dict[str, Any]:
    """Describe a response for the reference."""
    return {"description": description, "content": {"application/json": {"example": example}}}


def _described(name: str, adapter: TrainedAdapter) -> dict[str, Any]:
    features, classes = adapter.features, len(adapter.classes)
    return {"name": name, "task": adapter.task.name, "classes": classes, "features": features}


def _image_of(request: Request) -> Callable[[], Awaitable[bytes]]:
    """Give what reads the image of a request."""

    async def read() -> bytes:
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            return await request.body()
        async with request.form(max_files=1, max_fields=MOST_FIELDS) as form:
            files = [own for own in form.values() if isinstance(own, UploadFile)]
            return await files[0].read() if files else b""

    return read


def _require_own(request: Request, local: bool) -> None:
    """Refuse changes that a web page of another place asks for.

    Raises:
        RefusedError: naming that place.
    """
    host = request.headers.get("host", "")
    origin = request.headers.get("origin")
    try:
        own = not (local and not _is_own_name(host)) and (origin is None or urlsplit(origin).netloc == host)
    except ValueError:  # it is no address
        own = False
    if not own:
        raise RefusedError(403, f"a page of {(origin or host)[:200]!r} may not change the adapters of this server.")


def _is_own_name(host: str) -> bool:
    """Tell whether a host is this machine's by its name, or by a number, at which no other name can be pointed."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
