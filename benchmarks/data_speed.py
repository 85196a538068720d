"""Speed of the data pipeline, from text to packed batches: one JSON line a run.

Everything from cold, in a cache of its own: vocabulary, token store, rows, one epoch of
batches; then Grain's FirstFitPackIterDataset over the same token store, with the same row
lengths and rows a batch:

    python benchmarks/data_speed.py --train=text:europarl/train --languages=it-en --vocab=32000

target_tokens_per_s is real target tokens of one epoch over the time of store, rows and all
batches; ratio_to_peer is that over Grain's tokens per second, whose store is ready made.
ratio_reading counts rows and batches alone, which is what Grain does too.

--simulate_pairs=1000000000 measures a batch of a corpus of that size instead, whose arrays
are formulas: what the order of its rows costs in time and memory.
"""

import json
import pathlib
import resource
import tempfile
import time
import tracemalloc

import numpy as np
from absl import app, flags

from transformer_jax.data.batches import Batches
from transformer_jax.data.corpora import parse_corpora
from transformer_jax.data.packing import Growth, Rows, Shape, packed_rows
from transformer_jax.data.token_store import Filters, Side, TokenStore, open_store
from transformer_jax.data.vocabulary import Vocabulary

_TRAIN = flags.DEFINE_string("train", "numbers:train", "Corpus.")
_LANGUAGES = flags.DEFINE_string("languages", "en-de", "Source and target language.")
_VOCAB = flags.DEFINE_integer("vocab", 8000, "Entries of the vocabulary.", lower_bound=8)
_KIND = flags.DEFINE_string("kind", "unigram", "Kind of the vocabulary.")
_MAX_LENGTH = flags.DEFINE_integer("max_length", 256, "Most tokens a side.", lower_bound=2)
_ROW_LENGTHS = flags.DEFINE_string("row_lengths", "0,0", "Of source and target; 0 = chosen.")
_TOKENS = flags.DEFINE_integer("tokens_per_batch", 16384, "Places a side.", lower_bound=1)
_PEER = flags.DEFINE_bool("peer", True, "Run Grain beside it.")
_PEER_PAIRS = flags.DEFINE_integer("peer_pairs", 0, "Pairs that Grain packs; 0 = all.", 0)
_PEER_BINS = flags.DEFINE_integer("peer_bins", 64, "Grain's num_packing_bins.", lower_bound=1)
_SIMULATE = flags.DEFINE_integer("simulate_pairs", 0, "Size of a corpus to simulate.", 0)


def read_epoch(batches: Batches) -> dict:
    """Reads one epoch."""
    start = time.perf_counter()
    steps, source, target, places = int(batches.steps_per_epoch[0]), 0, 0, np.zeros(2)
    for step in range(steps):
        batch = batches.batch_at(step)
        source += np.count_nonzero(batch.source.segments)
        target += np.count_nonzero(batch.labels)
        places += batch.source.ids.size, batch.labels.size
    return {
        "seconds": time.perf_counter() - start,
        "steps": steps,
        "target_tokens": target,
        "fill_source": source / places[0],
        "fill_target": target / places[1],
        "fill": (source + target) / places.sum(),
    }


def ours(cache: pathlib.Path) -> tuple[dict, TokenStore, Batches]:
    """Text to batches, everything from cold; and opened a second time."""
    source, _, target = _LANGUAGES.value.partition("-")
    seconds = {}

    def timed(name, call):
        start = time.perf_counter()
        result = call()
        seconds[f"{name}_s"] = time.perf_counter() - start
        return result

    (corpus,) = parse_corpora(_TRAIN.value, source, target)
    vocabulary = timed("vocabulary", lambda: Vocabulary.train([corpus], _VOCAB.value, _KIND.value))
    filters = Filters(_MAX_LENGTH.value)
    given = Shape(*map(int, _ROW_LENGTHS.value.split(",")))

    def opened() -> tuple[TokenStore, list[list[Rows]]]:
        store = timed("store", lambda: open_store(corpus, vocabulary, filters, cache))
        return store, timed("rows", lambda: packed_rows([store], given, Growth(), cache))

    store, rows = opened()
    cold = dict(seconds)
    store, rows = opened()
    second = seconds["store_s"] + seconds["rows_s"]
    batches = Batches([store], rows, tokens_per_batch=_TOKENS.value, seed=0)
    epoch = read_epoch(batches)
    total = cold["store_s"] + cold["rows_s"] + epoch["seconds"]
    lengths = np.array([store.source.ids.size, store.target.ids.size])
    shape = rows[0][0].shape
    return (
        cold
        | {
            "pairs": len(store),
            "second_start_s": second,
            "epoch_s": epoch["seconds"],
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "row_lengths": list(shape),
            "fill": epoch["fill"],
            "fill_source": epoch["fill_source"],
            "fill_target": epoch["fill_target"],
            "fill_maximum": lengths.sum() / (lengths / shape).max() / sum(shape),
            "target_tokens_per_s": epoch["target_tokens"] / total,
            "reading_target_tokens_per_s": epoch["target_tokens"] / (total - cold["store_s"]),
        },
        store,
        batches,
    )


class Source:
    """The store as Grain reads it."""

    def __init__(self, store: TokenStore):
        self._store = store

    def __len__(self) -> int:
        return min(len(self._store), _PEER_PAIRS.value or len(self._store))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"source": self._store.source[index], "target": self._store.target[index]}


def peer(store: TokenStore, batches: Batches) -> dict:
    """Grain: shuffled pairs, packed and batched, in one process without read threads."""
    import grain

    (rows, shape), start = batches.shapes[0], time.perf_counter()
    pairs = grain.MapDataset.source(Source(store)).seed(0).shuffle()
    # Its default of 16 threads is a quarter as fast where the data is in memory.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    packed = grain.experimental.FirstFitPackIterDataset(
        pairs.to_iter_dataset(options),
        length_struct=shape._asdict(),
        num_packing_bins=_PEER_BINS.value,
        shuffle_bins=True,
    )
    tokens = real = places = 0
    for batch in packed.batch(rows, drop_remainder=False):
        tokens += np.count_nonzero(batch["target_segment_ids"])
        real += np.count_nonzero(batch["source_segment_ids"])
        places += batch["source"].size + batch["target"].size
    seconds = time.perf_counter() - start
    return {
        "peer_s": seconds,
        "peer_target_tokens_per_s": tokens / seconds,
        "peer_fill": (real + tokens) / places,
    }


class Formula:
    """An array whose entries are computed: of any size, without memory."""

    def __init__(self, size: int, of):
        self.size, self._of = size, of

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index):
        return self._of(index)


def simulate(pairs: int) -> dict:
    """Batches of a corpus of so many pairs, 40 tokens a side, six in a row of 240."""
    side = Side(Formula(40 * pairs, lambda i: i % 30_000 + 4), Formula(pairs + 1, lambda i: i * 40))
    rows = Rows(
        Shape(240, 240), Formula(pairs, lambda i: i), Formula(pairs // 6 + 1, lambda i: i * 6)
    )
    tracemalloc.start()
    batches = Batches(
        [TokenStore(side, side, {}, 0)], [[rows]], tokens_per_batch=_TOKENS.value, seed=0
    )
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    steps = np.random.default_rng(0).integers(0, 2 * int(batches.steps_per_epoch[0]), 200)
    start = time.perf_counter()
    for step in steps:
        batches.batch_at(int(step))
    batch_s = (time.perf_counter() - start) / len(steps)
    start = time.perf_counter()
    for step in steps:
        batches.rows_at(int(step))
    order_s = (time.perf_counter() - start) / len(steps)
    return {"pairs": pairs, "held_bytes": held, "batch_s": batch_s, "order_s": order_s}


def main(_) -> None:
    result = {"benchmark": "data_speed", "corpus": _TRAIN.value}
    if _SIMULATE.value:
        print(json.dumps(result | {"corpus": "simulated"} | simulate(_SIMULATE.value)))
        return
    with tempfile.TemporaryDirectory() as cache:
        measured, store, batches = ours(pathlib.Path(cache))
        result |= measured
        if _PEER.value:
            result |= peer(store, batches)
            for name, ratio in (("", "to_peer"), ("reading_", "reading")):
                ours_per_s = result[f"{name}target_tokens_per_s"]
                result[f"ratio_{ratio}"] = ours_per_s / result["peer_target_tokens_per_s"]
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    app.run(main)
