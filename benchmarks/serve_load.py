"""Load on a served model: throughput, latency, memory, and whether each answer is decode's own.

    python benchmarks/serve_load.py --workdir=runs/quickstart --requests=2000 --at_once=64

Number words are translated by decode, and then by a server on loopback for clients that each keep
a connection and ask one request after the other, of 1 to 3 texts. Then they ask on while SIGTERM
ends the server. Two JSON lines: `wrong`, `cut` and `lost` must be 0, or the exit status is 1.
"""

import asyncio
import collections
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
from absl import app, flags
from num2words import num2words

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder that train left.", required=True)
_REQUESTS = flags.DEFINE_integer("requests", 2000, "Requests before the kill.", lower_bound=1)
_AT_ONCE = flags.DEFINE_integer("at_once", 64, "Clients, of a connection each.", lower_bound=1)
_KILL_AFTER = flags.DEFINE_float("kill_after", 2.0, "Seconds of load before SIGTERM.")
_ROWS = flags.DEFINE_integer("rows", 0, "Sentences of a batch, 0 = the config's.", lower_bound=0)

COMMAND = [sys.executable, "-m", "transformer_jax"]


def requests() -> list[list[str]]:
    """The texts of each request."""
    chance = random.Random(0)
    return [
        [num2words(chance.randrange(10**6)) for _ in range(chance.randint(1, 3))]
        for _ in range(_REQUESTS.value)
    ]


def decoded(asked: list[list[str]], options: list[str]) -> list[list[dict]]:
    """What decode answers to each request."""
    command = [*COMMAND, "decode", "--format=json", *options]
    lines = "\n".join(text for texts in asked for text in texts) + "\n"
    out = subprocess.run(command, input=lines, text=True, check=True, stdout=subprocess.PIPE).stdout
    answers = map(json.loads, out.splitlines())
    return [[next(answers) for _ in texts] for texts in asked]


class Client:
    """A connection that is kept, and what became of its requests."""

    def __init__(self, port: int, counts: collections.Counter, seconds: list[float]):
        self.port, self.counts, self.seconds = port, counts, seconds
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, texts: list[str], expected: list[dict]) -> bool:
        """Asks once; returns whether the server is still there."""
        start = time.perf_counter()
        outcome = await self._outcome(json.dumps({"texts": texts}).encode(), expected)
        self.counts[outcome] += 1
        if outcome == "answered":
            self.seconds.append(time.perf_counter() - start)
        return outcome not in ("unreachable", "closed", "cut")

    async def _outcome(self, body: bytes, expected: list[dict]) -> str:
        try:
            if self.streams is None:
                self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return "unreachable"
        reader, writer = self.streams
        head, got = (
            f"POST /translate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}",
            b"",
        )
        try:
            writer.write(head.encode() + b"\r\n\r\n" + body)
            got = await reader.readuntil(b"\r\n\r\n")
            answer = await reader.readexactly(int(re.search(rb"content-length: (\d+)", got)[1]))
        except asyncio.IncompleteReadError as error:
            return "cut" if got or error.partial else "closed"
        except OSError:  # reset: a connection that the server closed as the request was on its way
            return "cut" if got else "closed"
        if b"connection: close" in got:
            writer.close()
            self.streams = None
        status, fields = int(got.split(b" ", 2)[1]), json.loads(answer)
        if status == 200:
            return "answered" if fields == {"translations": expected} else "wrong"
        return "refused" if status == 503 and fields["error"] else "wrong"


async def load(port: int, work: list[tuple], until=lambda: False):
    """All clients until there is no more work, or no server."""
    counts, seconds, waiting = collections.Counter(), [], iter(work)

    async def run() -> None:
        client = Client(port, counts, seconds)
        for texts, expected in waiting:
            if not await client.ask(texts, expected):
                break
        if client.streams:
            client.streams[1].close()

    start = time.perf_counter()
    await asyncio.gather(*(run() for _ in range(_AT_ONCE.value)))
    return counts, seconds, time.perf_counter() - start


async def killed(server: subprocess.Popen, port: int, work: list[tuple]) -> collections.Counter:
    """Load under which the server is told to end; the same work again and again."""
    running = asyncio.create_task(load(port, work * 1000))
    await asyncio.sleep(_KILL_AFTER.value)
    server.send_signal(signal.SIGTERM)
    return (await running)[0]


def memory(server: subprocess.Popen) -> dict[str, float]:
    """Resident memory now, and at most, in MiB."""
    status = pathlib.Path(f"/proc/{server.pid}/status").read_text()
    found = dict(re.findall(r"(VmRSS|VmHWM):\s*(\d+)", status))
    return {"mib": int(found["VmRSS"]) // 1024, "peak_mib": int(found["VmHWM"]) // 1024}


def main(_) -> None:
    options = [f"--workdir={_WORKDIR.value}"]
    options += [f"--rows={_ROWS.value}"] if _ROWS.value else []
    asked = requests()
    work = list(zip(asked, decoded(asked, options)))
    command = [*COMMAND, "serve", "--port=0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        port = int(re.search(r":(\d+)/", server.stderr.readline())[1])
        before = memory(server)["mib"]
        counts, seconds, total = asyncio.run(load(port, work))
        p50, p99 = np.percentile(seconds, [50, 99]).round(4).tolist()
        texts = sum(map(len, asked))
        report = {"requests": len(asked), "at_once": _AT_ONCE.value, **counts, "seconds": total}
        report |= {"requests_per_s": len(asked) / total, "texts_per_s": texts / total}
        report |= {"p50_s": p50, "p99_s": p99, "mib_before": before, **memory(server)}
        report["lost"] = len(asked) - counts["answered"]
        print(json.dumps(report), flush=True)
        after = asyncio.run(killed(server, port, work))
        status, told = server.wait(60), server.stderr.read()
    # What the server has answered, somebody has read.
    answered = int(re.search(r"(\d+) translations answered", told)[1])
    lost = answered - counts["answered"] - after["answered"]
    print(json.dumps({"killed_under_load": True, **after, "lost": lost, "exit_status": status}))
    bad = report["lost"], lost, status, *(x[y] for x in (counts, after) for y in ("wrong", "cut"))
    sys.exit(int(any(bad)))


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    app.run(main)
