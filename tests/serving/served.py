"""A server of this process over a translator of capitals, and a client."""

import contextlib
import http.client
import json
import socket
import threading
import time

from serving.capitals import Capitals

from transformer_jax.decoding.options import SearchOptions
from transformer_jax.interruption import Stop
from transformer_jax.serving import server, service
from transformer_jax.serving.limits import Limits

LIMITS = Limits(max_body=4096, max_texts=4, max_chars=50, max_queue=4, max_beam_size=8, grace=10)


class Served:
    """A server of this process, in a thread of its own."""

    def __init__(self, patch, limits: Limits = LIMITS, options: SearchOptions | None = None):
        self.stop, self.translator = Stop(), Capitals()
        patch.setattr(server, "noted", lambda plan: contextlib.nullcontext(self.stop))
        self.service = made = service.Service(
            self.translator, options or SearchOptions(), limits, "run <b>"
        )
        listener = server.bound("127.0.0.1", 0)
        self.port, self.status = listener.getsockname()[1], None

        def run() -> None:
            with listener:
                self.status = server.serve(made, listener)

        self.thread = threading.Thread(target=run)
        self.thread.start()
        self.until(self.listens)

    def listens(self) -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            return self.ask("/health")[0] == 200
        return False

    def end(self, signal: str = "SIGTERM") -> int:
        self.stop.signal = self.stop.signal or signal
        self.thread.join(20)
        return self.status

    def ask(self, path: str, body=None, method: str = "", **headers: str):
        """Status, headers, and the answer: JSON where it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            body = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
            response = connection.getresponse()
            content = response.read()
        if response.headers["content-type"] == "application/json":
            content = json.loads(content)
        return response.status, response.headers, content

    def translate(self, *texts: str, **fields):
        return self.ask("/translate", {"texts": list(texts)} | fields)

    def raw(self, sent: bytes) -> bytes:
        """All that is answered until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(sent)
            return b"".join(iter(lambda: connection.recv(4096), b""))

    def metric(self, name: str) -> int:
        text = self.ask("/metrics")[2].decode()
        return int(text.partition(f"\ntransformer_jax_{name} ")[2].partition("\n")[0])

    def until(self, condition) -> None:
        end = time.monotonic() + 20
        while not condition() and time.monotonic() < end:
            time.sleep(0.01)
        assert condition()
