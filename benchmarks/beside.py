"""What the speed benchmarks share: sizes of models, runs to be timed, and peers beside us."""

import contextlib
import json
import pathlib
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags

from transformer_jax.config import Config, ModelConfig
from transformer_jax.training.trainer import Trainer

PRESETS = {  # model_dim, feed_forward_dim, num_heads, num_layers
    "tiny": (256, 1024, 4, 3),
    "base": (512, 2048, 8, 6),
    "big": (1024, 4096, 16, 6),
}
PEER_PYTHON = flags.DEFINE_string(
    "peer_python", sys.executable, "The Python of an environment that peers are installed in."
)
PEER_HELP = (
    "Peers to run before and after this one, such as ctranslate2,ctranslate2:int8, each with a "
    "dtype if it is not ours; or the command of another benchmark."
)


def model_config(preset: str, dtype: str) -> ModelConfig:
    """The paper's model in one of the sizes."""
    model_dim, feed_forward_dim, num_heads, num_layers = PRESETS[preset]
    return ModelConfig(
        num_layers=num_layers,
        model_dim=model_dim,
        num_heads=num_heads,
        feed_forward_dim=feed_forward_dim,
        dtype=dtype,
    )


@contextlib.contextmanager
def timed_run(config: Config) -> Iterator[Trainer]:
    """A run of a config that never saves nor evaluates by itself, in a folder that goes."""
    config.training.save_every = config.training.eval_every = 10**9
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(Trainer(config, pathlib.Path(folder) / "run")) as trainer,
    ):
        yield trainer


def beside_peers(
    measure: Callable[[], dict],
    peers: str,
    make_job: Callable[[str, pathlib.Path], dict],
    python: str = sys.executable,
) -> Iterator[dict]:
    """What `measure` gives, anew beside each peer, with the speeds of both and their ratio.

    Args:
      measure: target_tokens_per_s, among others.
      peers: names of `peers.PEERS`, each with :DTYPE or not; or a command, the last line of whose
        output is JSON with target_tokens_per_s.
      make_job: from a peer's name and an empty folder to what `peers.py` reads.
      python: runs it.
    """
    if not peers:
        yield measure()
    elif not re.fullmatch(r"(\w+(:\w+)?(,(?!$)|$))+", peers):
        yield _beside(measure, shlex.split(peers))
    else:
        for peer in peers.split(","):
            name, _, dtype = peer.partition(":")
            with tempfile.TemporaryDirectory() as folder:
                job = make_job(name, pathlib.Path(folder)) | {"peer": name}
                job |= {"dtype": dtype} if dtype else {}
                path = pathlib.Path(folder, "job.json")
                path.write_text(json.dumps(job))
                script = pathlib.Path(__file__).with_name("peers.py")
                yield _beside(measure, [python, str(script), str(path)])


def _beside(measure: Callable[[], dict], command: list[str]) -> dict[str, Any]:
    before, result, after = _printed(command), measure(), _printed(command)
    speeds = [peer["target_tokens_per_s"] for peer in (before, after)]
    more = {f"peer_{x}": after[x] for x in ("dtype", "peak_rss_bytes") if x in after}
    return result | {
        "peer": after.get("peer", shlex.join(command)),
        **more,
        "peer_target_tokens_per_s": speeds,
        "ratio_to_peer": result["target_tokens_per_s"] / statistics.mean(speeds),
    }


def _printed(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(
            f"the peer's benchmark ended with status {done.returncode}: {shlex.join(command)}"
        )
    return json.loads(done.stdout.strip().splitlines()[-1])
