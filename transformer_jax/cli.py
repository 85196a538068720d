"""Command lines: flags made from dataclasses, readable help, errors in one sentence, logging."""

import contextlib
import dataclasses
import difflib
import functools
import io
import itertools
import logging
import os
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import flags
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
from transformer_jax.interruption import Interrupted
from transformer_jax.storage import cache_folder, local_path

USAGE_ERROR, FAILURE = 2, 1


class Parser:
    """absl flags by section, whose values a command reads; mistakes end the process.

    Attributes:
      values: the flags; --flagfile=FILE reads more of them, as in all absl programs.
    """

    def __init__(self, prog: str, usage: str, description: str):
        self.prog, self.values = prog, flags.FlagValues()
        self.values.set_gnu_getopt()  # flags may follow a stray word, which is reported
        self._help = [f"usage: {prog} {usage}", "", description.strip(), "", "flags:"]
        self._required: list[str] = []

    def section(self, title: str, description: str = "") -> None:
        """Begins a section of the help, which the flags that follow belong to."""
        self._help += ["", f"{title}:", *textwrap.wrap(description, 90, **_indented(2)), ""]

    def flag(
        self,
        name: str,
        default: Any,
        help: str,
        *,
        kind: type | None = None,
        parse: Callable[[str], Any] | None = None,
        required: bool = False,
        repeated: bool = False,
        metavar: str = "",
    ) -> None:
        """A flag --NAME=VALUE, of the default's type unless `kind` or `parse` say another."""
        kind = kind or (str if default is None else type(default))
        value = _Value(name, parse or functools.partial(parse_value, f"--{name}", kind))
        if repeated:
            flag = flags.MultiFlag(value, None, name, default, help)
        else:
            flag = flags.Flag(value, None, name, default, help, boolean=kind is bool)
        flags.DEFINE_flag(flag, self.values)
        self._required += [name] * required
        if default not in (None, "", []) and kind is not bool:
            help = f"{help} Default: {default}."
        word = "" if kind is bool else f" {metavar or kind.__name__.upper()}"
        self._help += [f"  --{name}{word}", *textwrap.wrap(help, 90, **_indented(8))]

    def config_flags(self) -> None:
        """A flag for each field of a config, by section; `config_of` sets what they say."""
        for section, rows in itertools.groupby(reference(), lambda row: row.section):
            group = getattr(Config(), section, Config())
            self.section(f"config.{section}".rstrip("."), group.__doc__)
            for row in rows:
                more = f"Default: {row.default}." if row.default != "" else ""
                more += f" Must be {row.takes}." if row.takes[:2] in ("at", "in") else ""
                more += f" Needs {row.needs}." if row.needs else ""
                choices = row.takes.startswith("one of ") and row.takes[7:].replace(", ", "|")
                kind = bool if row.type == "bool" else str
                metavar = choices or row.type.upper()
                help = f"{row.help} {more}"
                self.flag(row.name, None, help, kind=kind, parse=str, metavar=metavar)

    def process_flags(self) -> None:
        """The arguments of `hosts.initialize`."""
        self.section("processes on several hosts")
        self.flag(
            "coordinator",
            "",
            "Address of process 0, or auto to ask JAX. Slurm, Open MPI and GKE's TPU slices need "
            "none.",
            metavar="HOST:PORT",
        )
        self.flag("num_processes", 0, "Processes of the job, each with the same command.")
        self.flag("process_id", -1, "Of this one, from 0.")

    def option_flags(self, options: type) -> None:
        """A flag for each field of a dataclass of options."""
        for leaf in dataclasses.fields(options):
            kinds = typing.get_args(leaf.type) or (leaf.type,)
            (kind,) = (kind for kind in kinds if kind is not types.NoneType)
            parse = functools.partial(_option, leaf, kind)
            self.flag(leaf.name, leaf.default, leaf.metadata["help"], kind=kind, parse=parse)

    def parse(self, words: Sequence[str]) -> flags.FlagValues:
        """The values of all flags.

        Ends the process with the help where it is asked for, or with a sentence where a word is
        no flag, or a flag is missing or has no such value.
        """
        if not {"-h", "--help", "-help", "--helpfull"}.isdisjoint(words):
            _print_whole("\n".join(self._help))
            sys.exit()
        try:
            _, *stray = self.values([self.prog, *words])
        except flags.UnrecognizedFlagError as error:
            end(self._unknown(error.flagname), USAGE_ERROR)
        except (flags.Error, ValueError) as error:  # the latter of --noFLAG=VALUE
            end(str(error), USAGE_ERROR)
        if stray:
            end(self._unexpected(stray[0]), USAGE_ERROR)
        for name in self._required:
            value = self.values[name].value
            if not value or (isinstance(value, list) and not all(value)):
                sentence = f"--{name} is missing: {self.prog} --help says what it is"
                end(sentence, USAGE_ERROR)
        return self.values

    def _unknown(self, name: str) -> str:
        if name.removeprefix("no").startswith("config."):
            return unknown_field(name.removeprefix("no"))
        near = difflib.get_close_matches(name, self.values, n=1)
        hint = f"did you mean --{near[0]}?" if near else f"{self.prog} --help has all"
        return f"there is no flag --{name}; {hint}"

    def _unexpected(self, word: str) -> str:
        is_config = bool(re.search(r"\.py(:|$)", word))
        fits = {"config": is_config, "configs": is_config, "input": os.path.isfile(word)}
        hints = [f"did you mean --{x}={word}?" for x in fits if fits[x] and x in self.values]
        return f"unexpected argument {word!r}; {next(iter(hints), 'flags are --name=value')}"


class _Value(flags.ArgumentParser):
    """What a flag's text says; its errors are whole sentences, to which absl adds nothing."""

    def __init__(self, name: str, parse: Callable[[str], Any]):
        self._name, self._parse = name, parse

    def parse(self, argument: Any) -> Any:
        if not isinstance(argument, str):  # a default
            return argument
        try:
            return self._parse(argument)
        except ValueError as error:
            sentence = str(error)
            named = sentence.startswith(("--", "config."))
            raise flags.IllegalFlagValueError(
                sentence if named else f"--{self._name}: {sentence}"
            ) from None


def _option(leaf: dataclasses.Field, kind: type, text: str) -> Any:
    value = parse_value(f"--{leaf.name}", kind, text)
    check_value(f"--{leaf.name}", leaf, value)
    return value


def _indented(spaces: int) -> dict[str, str]:
    return {"initial_indent": " " * spaces, "subsequent_indent": " " * spaces}


def given(values: flags.FlagValues) -> set[str]:
    """The names of the flags that do not have their default."""
    return {name for name in values if values[name].value != values[name].default}


def path(text: str) -> str:
    """A flag's value that names a file or folder, as `storage.local_path` has it; "" = none."""
    return local_path(text) if text else text


def config_of(values: flags.FlagValues) -> Config:
    """The config that --config names, with the fields set that have flags of their own."""
    try:
        config = load_config(values.config)
        for name in values:
            if name.startswith("config.") and values[name].present:
                with_field(config, name, values[name].value)
    except ValueError as error:
        end(str(error), USAGE_ERROR)
    return config


def run(command: Callable[[], int | None]) -> NoReturn:
    """Runs a command and exits with its status; the user's mistakes are told in one sentence.

    ValueError and OSError are the user's to mend; any other exception is a defect of ours and
    keeps its traceback.
    """
    if sys.stderr is None:  # closed: what is for it must not come out among the answers
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    escape_unprintable()
    go_on_unread("stderr")
    log_to_stderr()
    try:
        status = command()
        _flush()
        sys.exit(status)
    except BrokenPipeError:
        # The reader of our output has left: nothing to say, and nowhere to say it.
        _flush()
        sys.exit(FAILURE)
    except Interrupted:
        sys.exit(os.EX_TEMPFAIL)  # what could be saved is; the same command goes on
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


def go_on_unread(name: str) -> None:
    """What sys.stdout or sys.stderr cannot write is lost from now on, and no error.

    As where the reader of a pipe has left, or the disk of a log is full.
    """
    stream = getattr(sys, name)
    if stream is None or stream is not getattr(sys, f"__{name}__"):  # a notebook's, a test's
        return
    raw = io.BufferedWriter(_Unread(stream.fileno(), "w", closefd=False))
    options = {"encoding": stream.encoding, "errors": stream.errors}
    options["line_buffering"] = stream.line_buffering or stream.write_through
    setattr(sys, name, io.TextIOWrapper(raw, **options))


class _Unread(io.FileIO):
    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except OSError:
            return len(data)


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


def _print_whole(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(text)
    _flush()


def _flush() -> None:
    """Writes out what is buffered, to nowhere where the reader has left."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
