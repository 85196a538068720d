"""Steps compiled before the first one runs, the memory they need, and batches that fit it."""

import concurrent.futures
import os
from collections.abc import Callable
from typing import Any

import jax

from transformer_jax.data.batches import Batch, Batches, empty_batch
from transformer_jax.devices import must_block, place
from transformer_jax.heartbeat import heartbeat

_CLOSE = 0.97  # of the usable memory; nearer than this is not searched for
_FAR = 64  # times what fits: a line is trusted no farther


class Programs:
    """A step(state, batch) compiled for every shape of batch there will be."""

    def __init__(self, step: Callable, state: Any, batches: Batches, pieces: int = 1):
        """
        Args:
          step: from `parallel`.
          state: as it will be called with.
          batches: whose shapes they are.
          pieces: as for `place`.
        """
        self.pieces = pieces

        def compiled(shape) -> jax.stages.Compiled:
            rows, row_shape = shape
            rows = -(-rows // jax.process_count())
            return step.lower(state, place(empty_batch(rows, row_shape), pieces)).compile()

        pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
        try:
            compiling = [pool.submit(compiled, shape) for shape in batches.shapes]
            with heartbeat(f"compiling for {len(compiling)} shapes of batches"):
                self._programs = {
                    row_shape: x.result() for (_, row_shape), x in zip(batches.shapes, compiling)
                }
        finally:
            # After Ctrl-C, or an error, only those already under way are waited for.
            pool.shutdown(cancel_futures=True)

    @property
    def bytes(self) -> int:
        """Memory that the largest of them needs on each device, arguments and results included."""
        stats = [program.memory_analysis() for program in self._programs.values()]
        return max(
            x.argument_size_in_bytes
            + x.output_size_in_bytes
            - x.alias_size_in_bytes
            + x.temp_size_in_bytes
            + x.generated_code_size_in_bytes
            for x in stats
        )

    def __call__(self, state: Any, placed: Batch) -> Any:
        """What the step returns; `placed` is a batch from `place`."""
        shape = placed.source.ids.shape[-1], placed.labels.shape[-1]
        result = self._programs[shape](state, placed)
        if must_block():
            jax.block_until_ready(result)
        return result


def largest_batch(bytes_of: Callable[[int], int], least: int, most: int, limit: int) -> int:
    """The largest tokens_per_batch whose step fits a device.

    The need grows nearly as a straight line, so that two programs tell about where the
    limit is met, and a few more come close.

    Args:
      bytes_of: compiles for a number of tokens, and says what that needs.
      least: the smallest number to try, which others are multiples of.
      most: a number beyond which no more is wanted.
      limit: bytes of the device.

    Raises:
      ValueError: not even `least` fits.
    """
    fits, need = least, bytes_of(least)
    if need > limit:
        raise ValueError(
            f"a step of {least} tokens needs {need / 2**30:.2f} GiB of a device that has "
            f"{limit / 2**30:.2f}: a smaller model is needed, or a shorter config.data.max_length"
        )
    too_many, slope = max(most, least) + 1, 0.0
    for _ in range(12):
        # Small batches may all need the same: devices and micro-batches fill their rows up.
        guess = fits + int(min((limit - need) / slope, _FAR * fits)) if slope else 2 * fits
        guess = min(guess, too_many - 1) // least * least
        if guess <= fits or need > _CLOSE * limit:
            break
        guess_need = bytes_of(guess)
        slope = (guess_need - need) / (guess - fits)
        if guess_need <= limit:
            fits, need = guess, guess_need
        else:
            too_many = guess
    return fits
