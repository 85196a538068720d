"""The application: its routes, who may ask, and what is told of a request that is refused.

asyncio's thread reads and checks requests; the batcher's thread translates and writes answers.
"""

import asyncio
import base64
import contextlib
import hashlib
import pathlib
import re
import time
from urllib.parse import urlsplit

import jax
import jinja2
import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.translator import Attention, Translator
from transformer_jax.figures.attention_page import attention_page
from transformer_jax.serving.answers import as_json, as_page
from transformer_jax.serving.batcher import Batcher, Finish, Job
from transformer_jax.serving.limits import Limits
from transformer_jax.serving.metrics import Metrics
from transformer_jax.serving.requests import Refused, all_hypotheses, parse

READ_S = 10.0  # for a body
_DISCARDED = 2**25  # bytes of too long a body that are read, so that its sender reads the answer
_MAX_ROWS = 1024  # texts of a batch where memory decides how many are computed at once
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
}


class Service:
    """An ASGI application that answers by one translator, within limits."""

    def __init__(self, translator: Translator, options: SearchOptions, limits: Limits, title: str):
        self.translator, self.options, self.limits = translator, options, limits
        resolved = translator.resolved(options)
        if resolved.beam_size > limits.max_beam_size:
            raise ValueError(
                f"beam_size={resolved.beam_size} of the server's own is more than "
                f"max_beam_size={limits.max_beam_size}"
            )
        rows = (resolved.rows or _MAX_ROWS) * jax.local_device_count()
        self.batcher = Batcher(translator, all_hypotheses(resolved), limits.max_queue, rows)
        self.stopping = False
        self.loopback = True  # whether this machine alone can connect
        self.jobs: set[Job] = set()  # accepted, and not answered
        self.reading: set[asyncio.Timeout] = set()  # the time limits of bodies that come
        self.metrics = Metrics()
        self._page = self._rendered(title, resolved)
        headers = _HEADERS | {"content-security-policy": _policy(self._page)}
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        gets = {"/": self._root, "/health": self._health, "/metrics": self._tell_metrics}
        posts = {"/translate": self._translate, "/attention": self._attention}
        self._paths = {*gets, *posts}
        self._app = Starlette(
            routes=[Route(path, endpoint) for path, endpoint in gets.items()]
            + [Route(path, endpoint, methods=["POST"]) for path, endpoint in posts.items()],
            exception_handlers={Refused: _tell, HTTPException: _tell, ClientDisconnect: _tell},
        )
        self._app.router.redirect_slashes = False  # another path is another path

    def _rendered(self, title: str, options: SearchOptions) -> str:
        """The page, which is told what the model can."""
        settings = {
            "most": self.limits.max_beam_size if options.sample else options.beam_size,
            "translations": max(options.n_best, min(options.beam_size, 5)),
            "attention": "cross" in self.translator.attention_shape,
            "languages": self.translator.config.data.language_tags,
        }
        source = pathlib.Path(__file__).with_name("page.html").read_text(encoding="utf-8")
        return jinja2.Template(source, autoescape=True).render(title=title, settings=settings)

    async def __call__(self, scope, receive, send) -> None:
        """Adds headers, and counts answers."""
        start, status = time.perf_counter(), 0

        async def with_headers(message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [(b"connection", b"close")] if self.stopping else []
                message = message | {"headers": [*message["headers"], *self._headers, *more]}
            await send(message)

        request = Request(scope, receive)
        try:
            if refused := self._stranger(request):
                await (await _tell(request, refused))(scope, receive, with_headers)
            else:
                await self._app(scope, receive, with_headers)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self.metrics.observe(path, status, time.perf_counter() - start)

    def _stranger(self, request: Request) -> Refused | None:
        """Why a request is refused that a page of another site has a browser make, if it is one."""
        own, origin = request.headers.get("host", ""), request.headers.get("origin")
        # Browsers tell the site to https and to this machine alone; to others, the origin.
        foreign = origin is not None and origin.rpartition("/")[2] != own
        site = request.headers.get("sec-fetch-site", "cross-site" if foreign else "none")
        if request.method == "POST" and site not in ("none", "same-origin"):
            return Refused(403, "pages of other sites may not use this server")
        with contextlib.suppress(ValueError):
            host = urlsplit(f"//{own}").hostname or ""
            if not self.loopback or is_loopback(host):
                return None
        return Refused(403, "the Host header does not name this machine, such as localhost")

    async def _root(self, request: Request) -> Response:
        return HTMLResponse(self._page)

    async def _health(self, request: Request) -> Response:
        status = "stopping" if self.stopping else "ok" if self.batcher.alive else "failed"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    async def _tell_metrics(self, request: Request) -> Response:
        counters = {"texts_total": self.batcher.texts, "batches_total": self.batcher.batches}
        gauges = {"waiting_texts": self.batcher.waiting, "open_requests": len(self.jobs)}
        text = self.metrics.text(gauges, counters)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def _translate(self, request: Request) -> Response:
        return Response(await self._answer(request, as_json), media_type="application/json")

    async def _attention(self, request: Request) -> Response:
        return HTMLResponse(await self._answer(request, as_page))

    async def _body(self, request: Request) -> bytes:
        """A request's body, within time, and before the end."""
        limit = asyncio.timeout(READ_S)
        try:
            async with limit:
                self.reading.add(limit)
                return await _read(request, self.limits.max_body)
        except TimeoutError:
            if self.stopping:
                raise Refused(503, "the server is stopping") from None
            raise Refused(408, f"the body has not come within {READ_S:g} seconds") from None
        finally:
            self.reading.discard(limit)

    async def _answer(self, request: Request, finish: Finish) -> bytes:
        """What the batcher answers a request, unless it is refused."""
        deadline = asyncio.get_running_loop().time() + self.limits.timeout
        body = await self._body(request)
        parsed = parse(body, self.translator, self.options, self.limits, single=finish is as_page)
        if self.stopping:
            raise Refused(503, "the server is stopping")
        job = Job(parsed, finish)
        self.batcher.submit(job)
        self.jobs.add(job)
        gone = asyncio.ensure_future(_gone(request))
        try:
            left = deadline - job.loop.time()
            await asyncio.wait((job.future, gone), timeout=left, return_when="FIRST_COMPLETED")
            if job.future.done():
                return job.future.result()
        finally:
            gone.cancel()
            job.future.cancel()
            self.jobs.discard(job)
        if gone.done() and not gone.cancelled():
            raise ClientDisconnect
        raise Refused(503, f"not answered within {self.limits.timeout:g} seconds")


async def _read(request: Request, most: int) -> bytes:
    """A request's body, of at most so many bytes."""
    body, length = bytearray(), int(request.headers.get("content-length", "0"))
    if length <= most + _DISCARDED:
        length = 0
        async for part in request.stream():
            length += len(part)
            body += part if length <= most else b""
            if length > most + _DISCARDED:
                break
    if length > most:
        raise Refused(413, f"the body has more than {most} bytes")
    return bytes(body)


async def _tell(request: Request, error: Exception) -> Response:
    """An error as JSON, in one sentence."""
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    if isinstance(error, ClientDisconnect):
        return Response(status_code=400)  # to nobody
    headers = {"retry-after": str(error.retry_after)} if error.status == 503 else {}
    headers |= {"connection": "close"} if error.status in (408, 413) else {}
    sentence = str(error)
    sentence = sentence if len(sentence) <= 1000 else f"{sentence[:1000]}..."
    return JSONResponse({"error": sentence}, error.status, headers)


async def _gone(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _policy(page: str) -> str:
    """The page may run its own script, and that of the page of attention within it."""
    nothing = Attention(["a"], ["a"], ["a"], None, None, np.ones((1, 1, 1, 1), np.float32))
    scripts = []
    for each in (page, attention_page([nothing], title="")):
        scripts += re.findall(r"<script(?![^>]*json)[^>]*>(.*?)</script>", each, re.DOTALL)
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(x).decode()}'" for x in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def is_loopback(host: str) -> bool:
    """Whether a name or address is of this machine alone."""
    return host in ("localhost", "::1") or bool(re.fullmatch(r"127(\.\d{1,3}){3}", host))
