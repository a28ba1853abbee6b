"""The HTTP side: OpenAI's speech endpoint and what belongs to a server, as a Starlette application.

Every error is one JSON object in OpenAI's form. A body must be announced as JSON, which a page of
another origin cannot do without being asked, so a browser's visitor cannot use a local server.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Callable

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from llasa_core.serving.formats import FORMATS
from llasa_core.serving.metrics import Metrics
from llasa_core.serving.requests import RefusedError, SpeechRequest, read_request
from llasa_core.serving.service import Piece, SpeechService
from llasa_core.serving.shared_loop import GoneError, Ticket

LOG = logging.getLogger("llasa.serve")

LOOK_EVERY = 0.1  # seconds between two looks whether the client is still there
LEFT = 499  # status of a request whose client has left; nobody reads it


class Speech:
    """One request for speech, from its body to the last byte."""

    def __init__(self, web: Web, request: Request, asked: SpeechRequest) -> None:
        self.web, self.request, self.asked = web, request, asked
        self.began = time.monotonic()
        self.ticket = Ticket(web.service.limits.seconds)
        self._pieces: asyncio.Queue[Piece | BaseException] = asyncio.Queue()
        self.sent = 0.0  # seconds of audio

    def begin(self, what: tuple) -> None:
        """Hand the request to the service."""
        loop = asyncio.get_running_loop()

        def tell(piece: Piece | BaseException) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

        self.web.service.speak(self.asked, what, self.ticket, tell)

    async def piece(self) -> Piece:
        """The next piece. RefusedError where the client left (499), the time is over (504), or
        speaking failed (500).
        """
        waiting = asyncio.ensure_future(self._pieces.get())
        try:
            while not waiting.done():
                patience = min(LOOK_EVERY, self.ticket.remaining)
                await asyncio.wait({waiting}, timeout=patience)
                if waiting.done():
                    break
                if await self.request.is_disconnected():
                    raise RefusedError(LEFT, "the client left")
                if not self.ticket.remaining:
                    raise self._out_of_time()
        finally:
            waiting.cancel()
        piece = waiting.result()
        if isinstance(piece, GoneError):
            raise self._out_of_time()
        if isinstance(piece, BaseException):
            raise RefusedError(
                500, "speaking this text failed; the server's log says why", "server_error"
            )
        if not self.sent and piece.audio:
            self.web.metrics.first.observe(time.monotonic() - self.began)
        self.sent += piece.seconds
        return piece

    def end(self, status: int) -> None:
        """Count the request; what still runs for it is dropped."""
        self.web.service.leave(self.ticket)
        self.web.metrics.requests.labels(str(status)).inc()
        self.web.metrics.audio.inc(self.sent)
        if status == 200:
            self.web.metrics.seconds.observe(time.monotonic() - self.began)

    def headers(self) -> dict[str, str]:
        """What a client cannot know of raw samples, and what makes the same speech again."""
        return {
            "x-llasa-sample-rate": str(self.web.service.sample_rate),
            "x-llasa-seed": str(self.asked.seed),
        }

    async def stream(self, piece: Piece) -> AsyncIterator[bytes]:
        """The bytes of a response that begins with `piece`: audio, or events that hold it."""
        status = LEFT
        events = self.asked.stream_format == "sse"
        try:
            while True:
                if piece.audio:
                    yield _event_of(piece.audio) if events else piece.audio
                if piece.last:
                    break
                piece = await self.piece()
            self.web.tell_failures(piece)
            if events:
                yield _done_event(piece)
            status = 200
        except RefusedError as error:
            status = error.status
            if not events:
                raise  # an unfinished body tells the client that audio is missing
            yield _event({"type": "error", **error.body()})
        finally:
            self.end(status)

    def _out_of_time(self) -> RefusedError:
        seconds = self.web.service.limits.seconds
        return RefusedError(504, f"not spoken within {seconds:g} s", "server_error", "timeout")


class Web:
    """The endpoints over a SpeechService. `key`: what clients send as bearer token, if anything."""

    def __init__(self, service: SpeechService, model: str, key: str | None = None) -> None:
        self.service, self.model, self.key = service, model, key
        self.metrics, self.created = Metrics(service), int(time.time())

    def application(self) -> Starlette:
        """The ASGI application; the service starts and stops with it."""

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            self.service.start()
            yield
            await run_in_threadpool(self.service.stop)

        routes = [
            Route("/v1/audio/speech", self.checked(self.speech), methods=["POST"]),
            Route("/v1/audio/voices", self.checked(self.voices)),
            Route("/v1/models", self.checked(self.models)),
            Route("/v1/models/{name:path}", self.checked(self.models)),
            Route("/health", self.health),
            Route("/metrics", self.counted),
        ]
        handlers = {HTTPException: _unknown, RefusedError: _refused, Exception: _broken}
        return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)

    def checked(self, handler: Callable) -> Callable:
        """A handler for those who have the key."""

        async def handle(request: Request) -> Response:
            given = request.headers.get("authorization", "")
            if self.key is not None and not hmac.compare_digest(
                given.encode(), f"Bearer {self.key}".encode()
            ):
                raise RefusedError(401, "the API key is missing or wrong", code="invalid_api_key")
            return await handler(request)

        return handle

    async def speech(self, request: Request) -> Response:
        """POST /v1/audio/speech"""
        try:
            asked = read_request(
                await self._body(request),
                self.service.sample_rate,
                self.service.limits.characters,
            )
            self._check_model(asked.model, "model")
            speech = Speech(self, request, asked)
            self.service.refuse_if_full()
            what = await run_in_threadpool(self.service.settings, asked)
            speech.begin(what)
        except RefusedError as error:
            self.metrics.requests.labels(str(error.status)).inc()
            raise
        streams = False
        try:
            piece = await speech.piece()
            streams = asked.streamed
        except RefusedError as error:
            speech.end(error.status)
            raise
        finally:
            if not streams:
                self.service.leave(speech.ticket)
        media = FORMATS[asked.response_format].media_type
        if streams:
            kind = "text/event-stream" if asked.stream_format == "sse" else media
            return StreamingResponse(
                speech.stream(piece), media_type=kind, headers=speech.headers()
            )
        speech.end(200)
        self.tell_failures(piece)
        return Response(
            piece.audio, media_type=media, headers=speech.headers() | _guard_headers(piece)
        )

    def tell_failures(self, piece: Piece) -> None:
        """Count the texts that no attempt spoke well."""
        self.metrics.failed.inc(sum(bool(one.failed) for one in piece.spoken))

    async def voices(self, request: Request) -> Response:
        """GET /v1/audio/voices"""
        found = self.service.voices.values()
        return JSONResponse(
            {"voices": [{"id": one.name, "name": one.name, "kind": one.kind} for one in found]}
        )

    async def models(self, request: Request) -> Response:
        """GET /v1/models, and /v1/models/NAME"""
        model = {"id": self.model, "object": "model", "owned_by": "llasa", "created": self.created}
        if "name" not in request.path_params:
            return JSONResponse({"object": "list", "data": [model]})
        self._check_model(request.path_params["name"], None)
        return JSONResponse(model)

    async def health(self, request: Request) -> Response:
        """GET /health: 200 while speech can be made, else 503."""
        well = self.service.loop.running
        body = {"status": "ok" if well else "the loop has ended", "open": self.service.open}
        return JSONResponse(body, 200 if well else 503)

    async def counted(self, request: Request) -> Response:
        """GET /metrics"""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _body(self, request: Request) -> bytes:
        """The body of a request. RefusedError for one that is no JSON or too long."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RefusedError(415, "expected the header `content-type: application/json`")
        most, body = 2**16 + 12 * self.service.limits.characters, b""  # \\ud83d\\ude00 is one
        try:
            async with asyncio.timeout(self.service.limits.seconds):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise RefusedError(413, f"the body is longer than {most} bytes")
        except TimeoutError:
            raise RefusedError(408, "the body did not come to its end in time") from None
        except ClientDisconnect:
            raise RefusedError(LEFT, "the client left") from None
        return body

    def _check_model(self, name: str, param: str | None) -> None:
        if name != self.model:
            raise RefusedError(
                404,
                f"there is no model {name[:80]!r} here, expected {self.model!r}",
                code="model_not_found",
                param=param,
            )


def _guard_headers(piece: Piece) -> dict[str, str]:
    """How many attempts a text took, and what is still wrong with its pieces."""
    failed = sorted({reason for one in piece.spoken for reason in one.failed})
    attempts = {"x-llasa-attempts": str(sum(one.attempts for one in piece.spoken))}
    return attempts | ({"x-llasa-failed": ",".join(failed)} if failed else {})


def _event(item: dict) -> bytes:
    return b"data: " + json.dumps(item).encode() + b"\n\n"


def _event_of(audio: bytes) -> bytes:
    return _event({"type": "speech.audio.delta", "audio": base64.b64encode(audio).decode()})


def _done_event(piece: Piece) -> bytes:
    read = sum(one.prompt_tokens for one in piece.spoken)
    drawn = sum(one.generated.steps for one in piece.spoken)
    usage = {"input_tokens": read, "output_tokens": drawn, "total_tokens": read + drawn}
    return _event({"type": "speech.audio.done", "usage": usage})


async def _refused(_: Request, error: RefusedError) -> Response:
    headers = {"retry-after": str(error.retry_after)} if error.retry_after else None
    return JSONResponse(error.body(), error.status, headers)


async def _unknown(request: Request, error: HTTPException) -> Response:
    if error.status_code == 404:
        told = RefusedError(404, f"there is no {request.url.path[:80]!r} here", code="unknown_url")
    else:
        told = RefusedError(error.status_code, f"{request.method} is not possible: {error.detail}")
    return JSONResponse(told.body(), told.status, error.headers)


async def _broken(_: Request, error: Exception) -> Response:
    LOG.error("a request failed", exc_info=error)
    told = RefusedError(500, "the server failed; its log says why", "server_error")
    return JSONResponse(told.body(), 500)
