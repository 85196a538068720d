"""Metrics: running sums turned into means at each report, metrics.jsonl, TensorBoard."""

import json
import logging
import math
import pathlib
import time
from typing import Any

from tqdm import tqdm

from transformer_jax import hosts
from transformer_jax.storage import atomic_write, from_json, regular, unlinked
from transformer_jax.training.loss import Sums

FILE = "metrics.jsonl"

logger = logging.getLogger(__name__)


class Meter:
    """Sums over steps, turned into means at each report.

    Its `sums` belong into a checkpoint: a run that is resumed between two reports then
    reports what an uninterrupted one would. Its clock counts training alone.
    """

    def __init__(self, sums: dict[str, float] | None = None):
        self.sums = dict(sums or dict.fromkeys(Sums._fields, 0.0))
        self._reset()
        self._since: float | None = None

    def _reset(self) -> None:
        self._seconds, self._waited, self._tokens, self._flops, self._steps = 0.0, 0.0, 0.0, 0.0, 0

    def start_clock(self) -> None:
        """Resumes the clock (no-op if running)."""
        if self._since is None:
            self._since = time.monotonic()

    def stop_clock(self) -> None:
        """Pauses the clock (no-op if paused), as for an evaluation."""
        if self._since is not None:
            self._seconds += time.monotonic() - self._since
        self._since = None

    def add_wait(self, seconds: float) -> None:
        """Adds the seconds that a step waited for its batch."""
        self._waited += seconds

    def add(self, metrics: dict[str, Any], flops: float = 0.0) -> None:
        """Adds the sums of one step, and its model FLOPs."""
        for name in self.sums:
            self.sums[name] += float(metrics[name])
        self._tokens += float(metrics["tokens"])
        self._flops += flops
        self._steps += 1

    def report(self) -> dict[str, float]:
        """Means and speeds since the last report; resets the sums."""
        self.stop_clock()
        self.start_clock()
        report = means(self.sums) | {
            "target_tokens_per_s": self._tokens / max(self._seconds, 1e-9),
            "model_flops_per_s": self._flops / max(self._seconds, 1e-9),
            "seconds_per_step": self._seconds / max(self._steps, 1),
            "data_wait_s_per_step": self._waited / max(self._steps, 1),
        }
        self.sums = dict.fromkeys(self.sums, 0.0)
        self._reset()
        return report


def means(sums: dict[str, float]) -> dict[str, float]:
    """Loss (nats a token, smoothed), perplexity, accuracy, probability, packing efficiency."""
    tokens = sums["tokens"] or math.nan  # where no update was made
    cross_entropy = sums["cross_entropy"] / tokens
    return {
        "loss": sums["loss"] / tokens,
        "perplexity": math.exp(min(cross_entropy, 700.0)),
        "accuracy": sums["correct"] / tokens,
        "probability": sums["probability"] / tokens,
        "fill": sums["filled"] / max(sums["places"], 1.0),
    }


def report_line(step: int, report: dict[str, Any], smoothed: bool) -> str:
    """A report in at most 100 columns, 105 with MFU; `smoothed` says whether its loss is."""
    utilisation = f", MFU {report['mfu']:.0%}" if "mfu" in report else ""
    return (
        f"step {step}: {'smoothed ' if smoothed else ''}loss {report['loss']:.3f}, perplexity "
        f"{report['perplexity']:.3g}, accuracy {report['accuracy']:.1%}, lr "
        f"{report['learning_rate']:.1e}, {tqdm.format_sizeof(report['target_tokens_per_s'])} "
        f"tokens/s{utilisation}"
    )


def finite(tree: Any) -> Any:
    """The tree with None for NaN and infinities, which JSON lacks."""
    if isinstance(tree, dict):
        return {name: finite(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


class MetricLog:
    """metrics.jsonl of a workdir, and TensorBoard beside it where tensorboardX is installed."""

    def __init__(self, workdir: pathlib.Path, step: int, evaluated: int):
        """Opens the log of a run that continues after `step`; drops what was logged later.

        The evaluation of `step` itself is later than the last one that was `evaluated`.
        """
        self._file = self._board = None
        if not hosts.is_first():
            return
        path = regular(workdir / FILE)
        kept = []
        if path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [x for x in lines if _step(x) <= (evaluated if "valid_loss" in x else step)]
        with atomic_write(path) as file:
            file.writelines(line + "\n" for line in kept)
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            return
        self._board = SummaryWriter(str(unlinked(workdir / "tensorboard")), purge_step=step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends a line of JSON, and TensorBoard's scalars."""
        if self._file:
            self._append(json.dumps({"step": step} | finite(values)) + "\n")
        if self._board:
            for name, value in values.items():
                several = isinstance(value, list)  # epochs, of each corpus its own
                names = [f"{name}/{i}" for i in range(len(value))] if several else [name]
                for name, part in zip(names, value if several else [value]):
                    if isinstance(part, int | float):
                        self._board.add_scalar(name, part, step)

    def _append(self, text: str) -> None:
        """Writes text, and what a full disk has refused before."""
        complete = not self._unwritten
        self._unwritten += text.encode()
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            if complete:
                what = self._file.name, error.strerror
                logger.warning("%s cannot be written: %s; training goes on", *what)

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._file:
            self._append("")
            self._file.close()
        if self._board:
            self._board.close()


def _step(line: str) -> float:
    """The step of a line; infinity for a line cut off by a crash, or damaged."""
    try:
        step = from_json(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf
    return step if isinstance(step, int) else math.inf
