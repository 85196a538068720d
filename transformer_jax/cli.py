"""How the command lines start, and how they end: in one sentence where the user erred."""

import logging
import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Sequence

from absl import app, flags
from absl import logging as absl_logging

from transformer_jax.config import Config, load_config, unknown_field, whole_number
from transformer_jax.storage import cache_folder, local_path

USAGE_ERROR, FAILURE = 2, 1


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Parses the flags, runs `main`, and exits: `app.run` whose errors are one sentence.

    ValueError and OSError are the user's to mend and are told in a sentence; any other
    exception is a defect of ours and keeps its traceback.
    """
    use_huge_pages()
    escape_unprintable()
    cache_compilations()

    def main_or_sentence(argv: Sequence[str]) -> int | None:
        log_to_stderr()
        # As an exception, so that what is half written is removed.
        signal.signal(signal.SIGTERM, lambda *_: _end("terminated", 128 + signal.SIGTERM))
        try:
            if len(argv) > 1:
                _end(_unexpected(argv[1]), USAGE_ERROR)
            return main(argv)
        except BrokenPipeError:
            # The reader of our output has left: nothing to say, and nowhere to say it.
            _flush()
            return FAILURE
        except KeyboardInterrupt:
            return 130  # the shell says that it was interrupted
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _end(f"{where}{error.strerror or error}", FAILURE)
        except ValueError as error:
            _end(str(error), FAILURE)
        except (MemoryError, RuntimeError) as error:
            told = str(error)
            exhausted = "RESOURCE_EXHAUSTED" in told or "Out of memory" in told
            if isinstance(error, RuntimeError) and not exhausted:
                raise
            _end(
                "out of memory: lower config.data.tokens_per_batch or raise "
                "config.training.accumulate_steps, or in decoding lower --rows, --beam_size or "
                "--max_length "
                f"({told[:200]})",
                FAILURE,
            )

    app.run(main_or_sentence, flags_parser=_parse_flags)


def log_to_stderr() -> None:
    """Our own messages, bare; of the libraries' only what went wrong.

    Orbax and TensorFlow Datasets tell each step of theirs through absl, which `app.run`
    has put in charge of all logging.
    """
    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.basicConfig(stream=sys.stderr, level=logging.ERROR, format="%(message)s", force=True)
    logging.getLogger("transformer_jax").setLevel(logging.INFO)


def escape_unprintable() -> None:
    """Writes characters that the encoding of standard output or error lacks as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has not, nor one that is closed
            stream.reconfigure(errors="backslashreplace")


def use_huge_pages() -> None:
    """Starts our own command again with glibc told to ask for huge pages, unless it already was.

    XLA on a CPU allocates its scratch memory afresh at each step, hundreds of megabytes
    that are mapped page by page: with pages of 4 KiB a third of a training step went into
    100,000 page faults. glibc reads the setting only when a process starts. Whoever sets
    GLIBC_TUNABLES keeps it as it is, and a notebook, a debugger, a profiler or a script that
    calls us keeps its process.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ and _is_own_process():
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_own_process() -> bool:
    """Whether Python was started for one of our commands and nothing else."""
    if sys.gettrace() or sys.getprofile():
        return False
    package = pathlib.Path(__file__).resolve().parent
    scripts = (package.parent / "train.py", package.parent / "decode.py")
    arguments = sys.orig_argv[1:]
    script = pathlib.Path(next((x for x in arguments if not x.startswith("-")), "")).resolve()
    return script in scripts or arguments[:2] == ["-m", "transformer_jax.compare"]


def cache_compilations() -> None:
    """Keeps compiled programs on disk, so that a restart does not compile them again.

    In $JAX_COMPILATION_CACHE_DIR, or transformer_jax/ of the user's cache folder.
    """
    # By environment, which JAX reads when it is imported: a mistyped flag should not wait.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder("jax")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


class _Path(flags.ArgumentParser):
    """Of flags that are names of files and folders: as `paths.local_path` has them."""

    def parse(self, argument: str) -> str:
        return local_path(argument) if argument else argument


def define_path(name: str, default: str | None, help: str, *, multi: bool = False):
    """A flag for a file or folder of this machine, or several if it may be given several times."""
    if multi:
        return flags.DEFINE_multi(_Path(), flags.ArgumentSerializer(), name, default, help)
    return flags.DEFINE(_Path(), name, default, help)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    # Of all flags, and of the fields that ml_collections makes flags of.
    flags.IntegerParser.convert = lambda _, x: whole_number(x) if isinstance(x, str) else x
    if "config" in flags.FLAGS:
        flags.FLAGS["config"].parser.parse = _config
    try:
        return flags.FLAGS(list(argv))
    except (SystemExit, BrokenPipeError) as ended:
        # absl exits with 1 after --help, or the reader of that has left.
        _flush()
        status = getattr(ended, "code", 0)
        sys.exit(0 if status == 1 else status)
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config."):
            _end(unknown_field(error.flagname), USAGE_ERROR)
        _end(str(error), USAGE_ERROR)
    except flags.Error as error:
        _end(_stray(argv) or str(error), USAGE_ERROR)
    except (AttributeError, KeyError) as error:
        # How ml_collections tells of --config.a.b for which there is no field.
        _end(_no_such_field(argv) or f"config: {error}", USAGE_ERROR)
    except Exception as error:  # what else ml_collections raises, as at --config.model[0]
        _end(f"config: {type(error).__name__}: {error}", USAGE_ERROR)


def _config(path: str) -> Config:
    try:
        return load_config(path)
    except ValueError as error:
        _end(str(error), USAGE_ERROR)


def _no_such_field(argv: Sequence[str]) -> str:
    for argument in argv:
        if match := re.match(r"--?(config\.[\w.]+)", argument):
            node = Config()
            for part in match[1].split(".")[1:]:
                if not hasattr(node, part):
                    return unknown_field(match[1])
                node = getattr(node, part)
    return ""


def _stray(argv: Sequence[str]) -> str:
    """A sentence about the first argument that is no option nor the value of one, or ""."""
    for before, argument in zip(argv, argv[1:]):
        if not argument.startswith("-") and (not before.startswith("-") or "=" in before):
            return _unexpected(argument)
    return ""


def _unexpected(argument: str) -> str:
    hint = "options are --name=value"
    for name, fits in (
        ("config", re.search(r"\.py(:|$)", argument)),
        ("configs", re.search(r"\.py(:|$)", argument)),
        ("input", os.path.isfile(argument)),
    ):
        if fits and name in flags.FLAGS:
            hint = f"did you mean --{name}={argument}?"
    return f"unexpected argument {argument!r}; {hint}"


def _flush() -> None:
    """Writes out what is buffered, to nowhere where the reader has left."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(sentence: str, status: int) -> None:
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(status)
