"""The command transformer-jax, which is python -m transformer_jax as well."""

import importlib
import os
import signal
import sys
import types
from typing import NoReturn

import transformer_jax
from transformer_jax import allocator, cli, interruption
from transformer_jax.config import ready_configs

COMMANDS = {
    "train": "train a model, or resume",
    "decode": "translate, score or align",
    "compare": "train several models alike and report how they differ",
    "import": "make a workdir of a model of another program",
    "export": "write a model in the format of another program",
    "serve": "translate over HTTP, with a page to try it on",
}


def main(command: str | None = None) -> NoReturn:
    """Runs a command, by default the one that the first word of the command line names."""
    words, prog = sys.argv[1:], f"{command}.py"
    if command is None:
        command, prog = _named(words), f"transformer-jax {words[0]}"
        words = words[1:]
    if command == "decode":
        # Ends at once and without a word, also while libraries start: what is done is written.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    else:
        interruption.end_on_signals(0 if command == "serve" else os.EX_TEMPFAIL)
    cli.cache_compilations()
    allocator.share_arena()
    cli.run(lambda: _module(command).run(parser_of(command, prog).parse(words)))


def parser_of(command: str, prog: str = "") -> cli.Parser:
    """The flags of a command."""
    module = _module(command)
    parser = cli.Parser(prog or command, module.USAGE, module.__doc__)
    module.add_flags(parser)
    return parser


def _module(command: str) -> types.ModuleType:
    return importlib.import_module(f"transformer_jax.commands.{command}")


def _named(words: list[str]) -> str:
    if not words or words[0] in ("-h", "--help", "help"):
        print("usage: transformer-jax COMMAND --FLAG=VALUE ...\n")
        for name, help in COMMANDS.items():
            print(f"  {name:9}{help}")
        print("\ntransformer-jax COMMAND --help lists its flags; --version tells the version.")
        print(f"Ready configs, for --config: {', '.join(ready_configs())}.")
        sys.exit()
    if words[0] == "--version":
        print(f"transformer_jax {transformer_jax.__version__}")
        sys.exit()
    if words[0] not in COMMANDS:
        cli.end(f"there is no command {words[0]!r}, only {', '.join(COMMANDS)}", cli.USAGE_ERROR)
    return words[0]


if __name__ == "__main__":
    main()
