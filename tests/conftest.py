"""Strict JAX on four fake CPU devices; what is cached is cached for the session alone."""

import ctypes
import logging
import mmap
import os
import pathlib
import shutil
import signal
import sys
import tempfile

from commands import COMPILE_FAST, CONFIG, run_training

os.environ["XLA_FLAGS"] = (
    f"{COMPILE_FAST} --xla_force_host_platform_device_count=4 "
    + os.environ.get("XLA_FLAGS", "")  # of two values of a flag the last counts
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["TRANSFORMER_JAX_MALLOC"] = "default"  # also where a command runs in this process

import hypothesis
import jax
import pytest

from transformer_jax import interruption

# A shell's job in the background ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The same examples in every run: what fails, fails for a change and not by chance.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None)
hypothesis.settings.load_profile("suite")
jax.config.update("jax_numpy_rank_promotion", "raise")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# What needs no network, no window and no rights beyond its own.
FLAGS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    "disable-component-update disable-sync window-size=1200,800"
).split()


def pytest_configure(config):
    """Caches that no earlier session has filled and all processes of this one share: the user's
    cache folder, which is never the user's own, and the compiled programs."""
    if not hasattr(config, "workerinput"):  # pytest-xdist's workers inherit them
        config.cache_home = tempfile.mkdtemp()
        os.environ["XDG_CACHE_HOME"] = config.cache_home
        os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(config.cache_home, "jax")
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def pytest_unconfigure(config):
    if hasattr(config, "cache_home"):
        shutil.rmtree(config.cache_home, ignore_errors=True)


@pytest.fixture(autouse=True)
def few_programs():
    """Forgets what was compiled once it fills 1.2 GiB: a trainer leaves 100 MiB, in maps of memory
    besides, of which a process may have 65,530."""
    yield
    statm = pathlib.Path("/proc/self/statm")
    if statm.exists() and int(statm.read_text().split()[1]) * mmap.PAGESIZE > 1.2 * 2**30:
        jax.clear_caches()
        ctypes.CDLL(None).malloc_trim(0)  # or the process keeps what it has freed


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder with a config, a small corpus, and the cache of compiled programs."""
    folder = tmp_path_factory.mktemp("home")
    shared = pathlib.Path(os.environ["XDG_CACHE_HOME"], "commands")  # by the other processes' too
    shared.mkdir(exist_ok=True)
    (folder / "cache" / "transformer_jax").mkdir(parents=True)
    (folder / "cache" / "transformer_jax" / "jax").symlink_to(shared)
    (folder / "corpus.en").write_text("seven\ntwo hundred\none\n")
    (folder / "corpus.de").write_text("sieben\nzweihundert\neins\n")
    (folder / "tiny.py").write_text(CONFIG.format(corpus=folder / "corpus"))
    (folder / "misspelt.py").write_text(
        "from transformer_jax.config import ModelConfig\n"
        "def get_config():\n    return ModelConfig(num_layer=3)\n"
    )
    (folder / "named.py").write_text("def get_config(name):\n    return name\n")
    (folder / "three.py").write_text("def get_config():\n    return 3\n")
    (folder / "output").write_text("precious\n")
    return folder


@pytest.fixture(scope="session")
def trained(home):
    """A finished run, and what its process left."""
    workdir = home / "run"
    return workdir, run_training(home, workdir, f"--config.data.test=text:{home / 'corpus'}")


@pytest.fixture
def own_process():
    """Puts back what a command does to its process: signal handlers and logging."""
    handlers = {number: signal.getsignal(number) for number in interruption.NUMBERS}
    root, package = logging.getLogger(), logging.getLogger("transformer_jax")
    before = root.handlers[:], root.level, package.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    package.setLevel(before[2])
    signal.set_wakeup_fd(-1)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def failing(monkeypatch, capfd, own_process):
    """A function that runs a command which ends with a mistake, and returns its sentence."""
    from transformer_jax.__main__ import main

    def command(name: str, *flags: str, stdin: str = os.devnull) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *flags])
        with open(stdin) as lines, monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", lines)
            with pytest.raises(SystemExit) as ended:
                main(name)
        out, err = capfd.readouterr()
        (line,) = err.splitlines()
        assert ended.value.code in (1, 2) and out == "" and line.startswith("error: ")
        return line

    return command


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if not path or not driver:
        pytest.skip("there is no Chromium with its driver (Debian: chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = path
    for flag in (*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, Service(driver)) as browser:
        yield browser
