r"""Translates over HTTP: serve --workdir=runs/quickstart, then open http://127.0.0.1:8000/.

    curl http://127.0.0.1:8000/translate -d '{"texts": ["seven hundred and twelve"]}'

POST /translate answers JSON with JSON, GET / is a page to try the model on, GET /health and
/metrics are for what watches it. Requests that arrive together share a batch, and get the very
translations that they would get alone. Options of the search are those of a request that sets
none. Ctrl-C or SIGTERM answers what is accepted, then ends. Only this machine can connect, unless
--host says otherwise: there is no password and no encryption.
"""

import dataclasses
import importlib.util
import os

from absl.flags import FlagValues

from transformer_jax import allocator, cli
from transformer_jax.commands import decode
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.serving.limits import Limits

USAGE = "--workdir=FOLDER [--host=ADDRESS] [--port=N] [--beam_size=N ...]"


def add_flags(parser: cli.Parser) -> None:
    """The command's flags."""
    decode.model_flags(parser)
    help = "Address to listen at; 0.0.0.0 or :: is every one of this machine."
    parser.flag("host", "127.0.0.1", help, metavar="ADDRESS")
    parser.flag("port", 8000, "Port to listen at; 0 = any that is free.")
    parser.section("limits")
    parser.option_flags(Limits)
    parser.section("search")
    parser.option_flags(SearchOptions)


def run(flags: FlagValues) -> int:
    """Serves until a signal."""
    for name in ("starlette", "uvicorn"):
        if not importlib.util.find_spec(name):
            raise ValueError(f"serve needs {name}: pip install 'transformer_jax[serve]'")
    options, limits = (
        kind(**{x.name: getattr(flags, x.name) for x in dataclasses.fields(kind)})
        for kind in (SearchOptions, Limits)
    )
    _check(flags, limits)
    from transformer_jax.devices import check_devices
    from transformer_jax.serving import batcher, server

    check_devices()
    with server.bound(flags.host, flags.port) as listener:
        translator = decode.loaded(flags)
        names = [os.path.basename(os.path.realpath(folder)) for folder in flags.workdir]
        service = server.Service(translator, options, limits, title=", ".join(names))
        batcher.warm_up(translator, service.batcher.options)
        allocator.keep_freed_memory()
        return server.serve(service, listener)


def _check(flags: FlagValues, limits: Limits) -> None:
    """ValueError on flags that cannot be."""
    if not 0 <= flags.port < 2**16:
        raise ValueError(f"--port={flags.port} must be in [0, 65535]")
    if limits.max_queue < limits.max_texts:
        raise ValueError(
            f"--max_queue={limits.max_queue} is less than the --max_texts={limits.max_texts} that "
            "a request may have"
        )
