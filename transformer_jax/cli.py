"""Command lines: flags made from dataclasses, readable help, errors in one sentence, logging."""

import argparse
import dataclasses
import difflib
import functools
import itertools
import logging
import os
import re
import signal
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import logging as absl_logging

from transformer_jax.config import (
    Config,
    check_value,
    load_config,
    parse_value,
    reference,
    unknown_field,
    with_field,
)
from transformer_jax.storage import cache_folder, local_path

USAGE_ERROR, FAILURE = 2, 1


class Parser(argparse.ArgumentParser):
    """Flags by section, each by its whole name; mistakes end the process with one sentence.

    Attributes:
      flags: the names of all flags, and their defaults.
    """

    def __init__(self, prog: str, usage: str, description: str):
        super().__init__(
            prog=prog,
            usage=f"{prog} {usage}",
            description=description,
            allow_abbrev=False,
            formatter_class=functools.partial(
                argparse.RawDescriptionHelpFormatter, max_help_position=8
            ),
        )
        self.flags: dict[str, Any] = {}
        self._required: list[str] = []
        self._section: Any = self

    def section(self, title: str, description: str = "") -> None:
        """Begins a section of the help, which the flags that follow belong to."""
        self._section = self.add_argument_group(title, description)

    def flag(
        self,
        name: str,
        default: Any,
        help: str,
        *,
        kind: type | None = None,
        parse: Callable[[str], Any] | None = None,
        required: bool = False,
        **options: Any,
    ) -> None:
        """A flag --NAME=VALUE, of the default's type unless `kind` or `parse` say another."""
        self.flags[name] = default
        self._required += [name] * required
        kind = kind or (str if default is None else type(default))
        parse = parse or functools.partial(parse_value, f"--{name}", kind)
        if default not in (None, "", [], argparse.SUPPRESS) and kind is not bool:
            help = f"{help} Default: {default}."
        add = self._section.add_argument
        options |= {"default": default, "dest": name, "help": help.replace("%", "%%")}
        if kind is bool or options.get("metavar") == _TRUTH:
            options |= {"nargs": "?", "const": parse("true"), "metavar": _TRUTH}
            off = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
            add(f"--no{name}", dest=name, action="store_const", const=parse("false"), **off)
        add(f"--{name}", type=_one_sentence(parse), **options)

    def config_flags(self) -> None:
        """A flag for each field of a config, by section; `config_of` sets what they say."""
        for section, rows in itertools.groupby(reference(), lambda row: row.section):
            group = getattr(Config(), section, Config())
            self.section(f"config.{section}".rstrip("."), group.__doc__)
            for row in rows:
                more = f"Default: {row.default}." if row.default != "" else ""
                more += f" Must be {row.takes}." if row.takes[:2] in ("at", "in") else ""
                more += f" Needs {row.needs}." if row.needs else ""
                metavar = row.takes.removeprefix("one of ").replace(", ", "|")
                metavar = metavar if row.takes.startswith("one of") else row.type.upper()
                metavar = _TRUTH if row.type == "bool" else metavar
                suppress = argparse.SUPPRESS
                self.flag(row.name, suppress, f"{row.help} {more}", parse=str, metavar=metavar)

    def option_flags(self, options: type) -> None:
        """A flag for each field of a dataclass of options."""
        for leaf in dataclasses.fields(options):
            kinds = typing.get_args(leaf.type) or (leaf.type,)
            (kind,) = (kind for kind in kinds if kind is not types.NoneType)
            more = {} if kind is bool else {"metavar": kind.__name__.upper()}
            parse = functools.partial(_option, leaf, kind)
            self.flag(leaf.name, leaf.default, leaf.metadata["help"], parse=parse, **more)

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """The values of all flags, and in `given` the names of those that are not the default.

        Ends the process where a word is no flag, or a flag is missing.
        """
        found, stray = self.parse_known_args(words)
        if stray:
            self.error(self._unexpected(stray[0]))
        for name in self._required:
            value = getattr(found, name)
            if not value or (isinstance(value, list) and not all(value)):
                self.error(f"--{name} is missing: {self.prog} --help says what it is")
        given = vars(found).items()
        found.given = {name for name, value in given if value != self.flags[name]}
        return found

    def error(self, message: str) -> NoReturn:
        """Ends the process with a sentence about a mistake in the command."""
        # argparse says which flag it is, and so do our own sentences.
        message = re.sub(r"^argument (\S+: )", r"\1", message)
        end(re.sub(r"^\S+: (?=(--|config\.))", "", message), USAGE_ERROR)

    def _unexpected(self, word: str) -> str:
        name = word.split("=")[0].lstrip("-")
        if word.startswith("-") and name.removeprefix("no").startswith("config."):
            return unknown_field(name.removeprefix("no"))
        if word.startswith("-"):
            near = difflib.get_close_matches(name, self.flags, n=1)
            hint = f"did you mean --{near[0]}?" if near else f"{self.prog} --help has all"
            return f"there is no flag --{name}; {hint}"
        is_config = bool(re.search(r"\.py(:|$)", word))
        fits = {"config": is_config, "configs": is_config, "input": os.path.isfile(word)}
        hints = [f"did you mean --{x}={word}?" for x in fits if fits[x] and x in self.flags]
        return f"unexpected argument {word!r}; {next(iter(hints), 'flags are --name=value')}"


_TRUTH = "true|false"


def _option(leaf: dataclasses.Field, kind: type, text: str) -> Any:
    value = parse_value(f"--{leaf.name}", kind, text)
    check_value(f"--{leaf.name}", leaf, value)
    return value


def _one_sentence(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:  # whose words argparse would not show
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


def path(text: str) -> str:
    """A flag's value that names a file or folder, as `storage.local_path` has it; "" = none."""
    return local_path(text) if text else text


def config_of(flags: argparse.Namespace) -> Config:
    """The config that --config names, with the fields set that have flags of their own."""
    try:
        config = load_config(flags.config)
        for name, text in vars(flags).items():
            if name.startswith("config."):
                with_field(config, name, text)
    except ValueError as error:
        end(str(error), USAGE_ERROR)
    return config


def run(command: Callable[[], int | None]) -> NoReturn:
    """Runs a command and exits with its status; the user's mistakes are told in one sentence.

    ValueError and OSError are the user's to mend; any other exception is a defect of ours and
    keeps its traceback.
    """
    escape_unprintable()
    log_to_stderr()
    # As an exception, so that what is half written is removed.
    signal.signal(signal.SIGTERM, lambda *_: end("terminated", 128 + signal.SIGTERM))
    try:
        status = command()
        _flush()
        sys.exit(status)
    except BrokenPipeError:
        # The reader of our output has left: nothing to say, and nowhere to say it.
        _flush()
        sys.exit(FAILURE)
    except KeyboardInterrupt:
        sys.exit(130)  # the shell says that it was interrupted
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        end(f"{where}{error.strerror or error}", FAILURE)
    except ValueError as error:
        end(str(error), FAILURE)
    except (MemoryError, RuntimeError) as error:
        message = str(error)
        exhausted = "RESOURCE_EXHAUSTED" in message or "Out of memory" in message
        if isinstance(error, RuntimeError) and not exhausted:
            raise
        end(
            "out of memory: lower config.data.tokens_per_batch or raise "
            "config.training.accumulate_steps, or in decoding lower --rows, --beam_size or "
            f"--max_length ({message[:200]})",
            FAILURE,
        )


def log_to_stderr() -> None:
    """Shows our own messages, bare, and of the libraries' only errors.

    Orbax and TensorFlow Datasets report each of their steps through absl.
    """
    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.basicConfig(stream=sys.stderr, level=logging.ERROR, format="%(message)s", force=True)
    logging.getLogger("transformer_jax").setLevel(logging.INFO)


def escape_unprintable() -> None:
    """Writes characters that the encoding of standard output or error lacks as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has not, nor one that is closed
            stream.reconfigure(errors="backslashreplace")


def cache_compilations() -> None:
    """Keeps compiled programs on disk, so that a restart does not compile them again.

    In $JAX_COMPILATION_CACHE_DIR, or transformer_jax/ of the user's cache folder.
    """
    # By environment, which JAX reads when it is imported: a mistyped flag should not wait.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder("jax")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def end(sentence: str, status: int) -> NoReturn:
    """Exits with a sentence on stderr."""
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(status)


def _flush() -> None:
    """Writes out what is buffered, to nowhere where the reader has left."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
