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

from transformer_jax.cache import cache_folder
from transformer_jax.config import unknown_field

USAGE_ERROR, FAILURE = 2, 1


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Parses the flags, runs `main`, and exits: `app.run` whose errors are one sentence.

    ValueError and OSError are the user's to mend and are told in a sentence; any other
    exception is a defect of ours and keeps its traceback.
    """
    use_huge_pages()
    cache_compilations()

    def main_or_sentence(argv: Sequence[str]) -> int | None:
        log_to_stderr()
        # As an exception, so that what is half written is removed.
        signal.signal(signal.SIGTERM, lambda *_: _end("terminated", 128 + signal.SIGTERM))
        try:
            if len(argv) > 1:
                _end(f"unexpected argument {argv[1]!r}; options are --name=value", USAGE_ERROR)
            return main(argv)
        except BrokenPipeError:
            # The reader of our output has left: nothing to say, and nowhere to say it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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


def _parse_flags(argv: Sequence[str]) -> list[str]:
    if sentence := _no_such_file(argv):
        _end(sentence, USAGE_ERROR)
    try:
        return flags.FLAGS(list(argv))
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config."):
            _end(unknown_field(error.flagname), USAGE_ERROR)
        _end(str(error), USAGE_ERROR)
    except flags.Error as error:
        # An error inside get_config() comes with its traceback: the last line says what it is.
        lines = str(error).strip().splitlines()
        _end(f"{lines[0]} {lines[-1]}" if "Traceback" in str(error) else str(error), USAGE_ERROR)
    except (AttributeError, KeyError) as error:
        # How ml_collections tells of --config.a.b for which there is no field.
        _end(_no_such_field(argv) or f"config: {error}", USAGE_ERROR)
    except Exception as error:  # whatever a config file's own code may raise
        _end(f"config: {type(error).__name__}: {error}", USAGE_ERROR)


def _no_such_field(argv: Sequence[str]) -> str:
    from transformer_jax.config import Config

    for argument in argv:
        if match := re.match(r"--?(config\.[\w.]+)", argument):
            node = Config()
            for part in match[1].split(".")[1:]:
                if not hasattr(node, part):
                    return unknown_field(match[1])
                node = getattr(node, part)
    return ""


def _no_such_file(argv: Sequence[str]) -> str:
    for argument, after in zip(argv, [*argv[1:], ""]):
        match = re.match(r"--?config(?:=([^:]+))?$", argument)
        path = match and (match[1] or after.partition(":")[0])
        if path and not pathlib.Path(path).is_file():
            return f"there is no config file {path}"
    return ""


def _end(sentence: str, status: int) -> None:
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(status)
