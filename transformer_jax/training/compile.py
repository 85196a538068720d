"""Steps compiled for all shapes before training, the memory they need, the largest batch."""

import concurrent.futures
import os
from collections.abc import Callable
from typing import Any

import jax

from transformer_jax.data.batches import Batch, Batches, empty_batch
from transformer_jax.devices import must_block, place
from transformer_jax.heartbeat import heartbeat

_CLOSE_ENOUGH = 0.97  # of the memory limit: stop the search
_MAX_EXTRAPOLATION = 64  # times the largest batch that fits


class CompiledSteps:
    """A step(state, batch) compiled for every shape of batch there will be."""

    def __init__(
        self,
        step: Callable,
        state: Any,
        batches: Batches,
        micro_batches: int = 1,
        place: Callable = place,
    ):
        """Compiles in parallel.

        Args:
          step: from `parallel` of a layout.
          state: shaped and placed as in the calls to come.
          batches: gives the shapes.
          micro_batches, place: of the layout.
        """

        def compiled(rows: int, row_shape) -> jax.stages.Compiled:
            rows = -(-rows // jax.process_count())
            batch = place(empty_batch(rows, row_shape), micro_batches)
            return step.lower(state, batch).compile()

        pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
        try:
            futures = {shape: pool.submit(compiled, rows, shape) for rows, shape in batches.shapes}
            with heartbeat(f"compiling for {len(futures)} shapes of batches"):
                self._compiled = {shape: future.result() for shape, future in futures.items()}
        finally:
            # After Ctrl-C, or an error, waits only for those under way.
            pool.shutdown(cancel_futures=True)

    @property
    def bytes(self) -> int:
        """Memory a device needs for the largest of them, arguments and results included."""
        return max(map(bytes_of, self._compiled.values()))

    def __call__(self, state: Any, placed: Batch) -> Any:
        """Runs the step on a batch from `devices.place`."""
        shape = placed.source.ids.shape[-1], placed.labels.shape[-1]
        result = self._compiled[shape](state, placed)
        if must_block():
            jax.block_until_ready(result)
        return result


def bytes_of(compiled: jax.stages.Compiled) -> int:
    """Memory of a device that a program needs, arguments and results included."""
    x = compiled.memory_analysis()
    return (
        x.argument_size_in_bytes
        + x.output_size_in_bytes
        - x.alias_size_in_bytes
        + x.temp_size_in_bytes
        + x.generated_code_size_in_bytes
    )


def largest_batch(
    bytes_of: Callable[[int], int], min_tokens: int, max_tokens: int, limit: int
) -> int:
    """The largest tokens_per_batch whose step fits a device.

    Memory grows nearly linearly with tokens, so that two compilations tell roughly where the
    limit is met, and a few more come close.

    Args:
      bytes_of: compiles for a number of tokens, and returns the memory that it needs.
      min_tokens: the smallest number to try; all others are multiples of it.
      max_tokens: a bound, such as the tokens of an epoch.
      limit: bytes of the device.

    Raises:
      ValueError: not even `min_tokens` fit.
    """
    fits, need = min_tokens, bytes_of(min_tokens)
    if need > limit:
        raise ValueError(
            f"a step of {min_tokens} tokens needs {need / 2**30:.2f} GiB of a device that has "
            f"{limit / 2**30:.2f}: a smaller model is needed, or a shorter config.data.max_length"
        )
    too_many, slope = max(max_tokens, min_tokens) + 1, 0.0
    for _ in range(12):
        # Small batches may all need the same: rows are padded to devices times micro-batches.
        growth = min((limit - need) / slope, _MAX_EXTRAPOLATION * fits) if slope else fits
        guess = min(fits + int(growth), too_many - 1) // min_tokens * min_tokens
        if guess <= fits or need > _CLOSE_ENOUGH * limit:
            break
        guess_need = bytes_of(guess)
        slope = (guess_need - need) / (guess - fits)
        if guess_need <= limit:
            fits, need = guess, guess_need
        else:
            too_many = guess
    return fits
