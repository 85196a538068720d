"""A step of beam search on machines that are not there, by their own compilers: one JSON line.

    JAX_PLATFORMS=cpu python benchmarks/search_targets.py --target=gpu:h100:1 --preset=base

launches are what the device starts in a step, that of a loop inside as often as it goes round;
cycles what a TPU's compiler expects of them, and 0 of a GPU's. Nothing runs: no figure is a speed.
"""

import json
import re
import time

import jax
import jax.numpy as jnp
from absl import app, flags
from beside import PRESETS, model_config

from transformer_jax.config import DecodingConfig, ModelConfig
from transformer_jax.data.batches import pad_rows
from transformer_jax.data.vocabulary import BOS, EOS, PAD, UNK
from transformer_jax.decoding import search
from transformer_jax.decoding.engine import Models
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.search import Constraints, Search, SpecialIds
from transformer_jax.model.build import abstract_model
from transformer_jax.training.targets import find_target

_TARGET = flags.DEFINE_string("target", "gpu:h100:1", "Machines, as for --target of train.")
_PRESET = flags.DEFINE_enum("preset", "base", PRESETS, "Size of the model.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Of the computation.")
_ROWS = flags.DEFINE_integer("rows", 32, "Sentences.", lower_bound=1)
_BEAM = flags.DEFINE_integer("beam", 4, "Hypotheses of the beam.", lower_bound=1)
_MOST_TOKENS = flags.DEFINE_integer("most_tokens", 64, "Of a side.", lower_bound=2)
_VOCAB = flags.DEFINE_integer("vocab", 32768, "Entries of the vocabulary.", lower_bound=8)

_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}


def compiled_search(
    target: str, config: ModelConfig, vocab_size: int, rows: int, beam: int, length: int
) -> jax.stages.Compiled:
    """The search of sentences that are encoded, from start to end, on one device."""
    (device, *_) = find_target(target).devices
    sharding = jax.sharding.SingleDeviceSharding(device)
    options = SearchOptions(beam_size=beam, rows=rows, max_length=length)
    options = options.resolved(DecodingConfig())
    graphdef, params = abstract_model(config, vocab_size, device.platform)
    source, numbers = pad_rows([], rows, length), jnp.zeros(rows, jnp.int32)
    constraints = Constraints(numbers, numbers, source.ids, numbers)

    def placed(tree):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    def begin(params):
        models = Models((graphdef,), (params,)).prepared()
        own = Search(models.merged(), options, SpecialIds(BOS, EOS, PAD, UNK))
        memory = own.model.encode(source)
        return models, search.first_state(own, memory, constraints, source.segments != 0)

    def run(models, state):
        own = Search(models.merged(), options, SpecialIds(BOS, EOS, PAD, UNK))
        return search.run(own, state, jnp.int32(rows))

    models, state = jax.eval_shape(begin, params)
    return jax.jit(run, donate_argnums=1).lower(placed(models), placed(state)).compile()


def step_of(text: str, *, searched: bool = True) -> dict[str, int]:
    """Launches, loops and cycles of a step: the outermost loop's body in a search's program."""
    blocks = {}
    for block in text.split("\n\n"):
        if match := re.match(r"\s*(ENTRY )?%?([\w.-]+) .*\{\n", block):
            blocks["ENTRY" if match[1] else match[2]] = block.splitlines()

    def loop(line: str) -> tuple[str, int]:
        condition, body = re.search(r"condition=%?([\w.-]+), body=%?([\w.-]+)", line).groups()
        known = re.findall(r'known_trip_count":\{"n":"(\d+)"', line)
        rounds = known or re.findall(r"constant\((\d+)\)", "\n".join(blocks[condition]))
        return body, max(map(int, rounds), default=1)

    def add(name: str, times: int, total: dict[str, int]) -> dict[str, int]:
        for line in blocks[name]:
            operation = re.search(r" = .*? ([\w-]+)\(", line)
            if operation and operation[1] == "while":
                body, rounds = loop(line)
                total["loops"] += 1
                add(body, times * rounds, total)
            elif operation and operation[1] not in _FREE:
                cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
                total["launches"] += times
                total["cycles"] += times * int(cycles[1]) if cycles else 0
        return total

    name = "ENTRY"
    if searched:
        (line,) = [line for line in blocks[name] if " while(" in line]
        name, _ = loop(line)
    return add(name, 1, {"launches": 0, "loops": 0, "cycles": 0})


def main(_) -> None:
    start = time.monotonic()
    config = model_config(_PRESET.value, _DTYPE.value)
    sizes = _ROWS.value, _BEAM.value, _MOST_TOKENS.value
    compiled = compiled_search(_TARGET.value, config, _VOCAB.value, *sizes)
    memory = compiled.memory_analysis()
    described = {
        "benchmark": "search_targets",
        "jax": jax.__version__,
        "target": _TARGET.value,
        "preset": _PRESET.value,
        "dtype": _DTYPE.value,
        "rows, beam, length": sizes,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "compile_s": time.monotonic() - start,
    }
    print(json.dumps(described | step_of(compiled.as_text())), flush=True)


if __name__ == "__main__":
    app.run(main)
