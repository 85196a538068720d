"""A service behind uvicorn: an address, time limits of connections, an end that cuts no answer."""

import asyncio
import contextlib
import logging
import os
import socket
import time
from typing import Any

import uvicorn

from transformer_jax.interruption import Stop, noted
from transformer_jax.serving.requests import Refused
from transformer_jax.serving.service import Service, is_loopback

logger = logging.getLogger(__name__)

IDLE_S = 10.0  # of a connection without a request, or with half a header
_WRITE_S = 60.0  # beyond the time of a request, to read its answer
_UVICORN = {
    **{"loop": "asyncio", "http": "h11", "ws": "none", "lifespan": "off", "log_config": None},
    **dict.fromkeys(("access_log", "proxy_headers", "server_header"), False),
    "limit_concurrency": 512,  # connections, beyond which it refuses requests
}
_LINGER_S = 0.2  # in which late requests are refused, rather than cut off


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address, which does not listen yet; OSError names the address."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"--host={host} --port={port}") from None
    return listener


class _Server(uvicorn.Server):
    """uvicorn's, which leaves signals to us."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def serve(service: Service, listener: socket.socket) -> int:
    """Serves until a signal; 0 if all that was accepted has been answered then."""
    host, port = listener.getsockname()[:2]
    service.loopback = is_loopback(host)
    config = uvicorn.Config(service, **_UVICORN)
    name = f"[{host}]" if ":" in host else host
    listener.listen()
    logger.info("serving on http://%s:%d/ (Ctrl-C ends)", name, port)
    if not service.loopback:
        logger.warning("anyone who can reach this machine can use it: no password, no encryption")
    with noted("answering what is accepted") as stop:
        left = asyncio.run(_until(stop, service, _Server(config), listener))
    logger.info("stopped: %d translations answered, %d left", service.metrics.translations, left)
    status = int(left > 0)
    if not service.batcher.close(timeout=0 if left else service.limits.grace):
        os._exit(status)  # a batch that still runs would outlive the interpreter
    return status


async def _until(stop: Stop, service: Service, server: _Server, listener: socket.socket) -> int:
    """Runs the server until a signal; returns how many requests it has left unanswered."""
    task = asyncio.create_task(server.serve(sockets=[listener]))
    since: dict[tuple[Any, ...], float] = {}
    while not stop.signal and not task.done():
        await asyncio.sleep(0.05)
        since = _cut_off_slow(server.server_state.connections, since, service.limits.timeout)
    service.stopping = True
    end = time.monotonic() + service.limits.grace
    while service.jobs and time.monotonic() < end:
        await asyncio.sleep(0.02)
    left = len(service.jobs)
    for job in list(service.jobs):
        job.settle(Refused(503, "the server has stopped"))
    await asyncio.sleep(_LINGER_S)
    for accepting in server.servers:  # no more; what came before is still refused
        accepting.close()
    for limit in service.reading:  # a body that has half come would delay the end
        limit.reschedule(asyncio.get_running_loop().time())
    await asyncio.sleep(_LINGER_S)
    # Answers are written, but those who ask may read slowly.
    server.config.timeout_graceful_shutdown = max(end - time.monotonic(), 1)
    server.should_exit = True
    await task
    return left


def _cut_off_slow(
    connections: set[Any], since: dict[tuple[Any, ...], float], timeout: float
) -> dict[tuple[Any, ...], float]:
    """Ends connections that stay too long as they are: uvicorn waits for headers without end.

    Args:
      connections: uvicorn's.
      since: when each began to be as it was at the last call.
      timeout: seconds of a request.

    Returns:
      `since` of now.
    """
    now, states = time.monotonic(), {}
    for connection in list(connections):
        idle = connection.cycle is None or connection.cycle.response_complete
        state = connection, connection.cycle, idle
        states[state] = since.get(state, now)
        unread = connection.transport.get_write_buffer_size() > 0
        most = IDLE_S if idle and not unread else timeout + _WRITE_S
        if now - states[state] > most:
            connection.transport.abort()
    return states
