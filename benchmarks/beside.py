"""What the speed benchmarks share: sizes of models, and running a peer's benchmark beside ours."""

import json
import shlex
import statistics
import subprocess
from collections.abc import Callable

from transformer_jax.config import ModelConfig

PRESETS = {  # model_dim, feed_forward_dim, num_heads, num_layers
    "tiny": (256, 1024, 4, 3),
    "base": (512, 2048, 8, 6),
    "big": (1024, 4096, 16, 6),
}


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


def beside_peer(measure: Callable[[], dict], command: str) -> dict:
    """What `measure` gives, with ratio_to_peer if there is the command of a peer's benchmark.

    The peer runs before and after; the last line that it prints must be JSON with
    target_tokens_per_s, and the ratio is ours over its mean.
    """
    if not command:
        return measure()
    before = _peer_speed(command)
    result = measure()
    peers = [before, _peer_speed(command)]
    ratio = result["target_tokens_per_s"] / statistics.mean(peers)
    return result | {"peer_target_tokens_per_s": peers, "ratio_to_peer": ratio}


def _peer_speed(command: str) -> float:
    done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"the peer's benchmark ended with status {done.returncode}: {command}")
    return json.loads(done.stdout.strip().splitlines()[-1])["target_tokens_per_s"]
