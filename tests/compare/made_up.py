"""A made-up comparison, with all that a report has to stand."""

import math
from typing import Any


def comparison() -> dict[str, Any]:
    """What comparison.json holds: models, one that failed, some on fewer pairs, values missing."""
    names = ["RNN", "LSTM", "GRU", "LSTM dot", "LSTM general", "GRU additive", "Transformer"]
    runs = [_run(name, place) for place, name in enumerate(names)]
    runs += [_run("LSTM dot", 3, pairs=pairs) for pairs in (5000, 10_000)]
    runs += [_run("Transformer", 6, pairs=pairs) for pairs in (5000, 10_000)]
    failed = {"name": "LSTM <big>", "config": {"model": {"model_dim": 4096}}, "pairs": 20_000}
    failed |= {
        "limited": False,
        "status": "failed",
        "error": "ValueError: <script>no memory</script>",
    }
    return {
        "date": "2026-11-21",
        "machine": {"device": "cpu", "cores": 2, "python": "3.12.3", "jax": "0.12.0"},
        "command": "python -m transformer_jax.compare --config=configs/a.py --outdir='runs/<x>'",
        "budget": {"target_tokens": 2_000_000, "train_seconds": None},
        "test": {
            "corpus": "text:data/<test>",
            "sentences": 1000,
            "source_language": "en",
            "target_language": "ko",
            "length_unit": "words",
        },
        "runs": [*runs, failed],
        "significance": [_test(first, second) for first, second in zip(names, names[1:])],
        "initial_gradients": {
            "tanh RNN": [0.5 ** (1 + i) for i in range(40)],
            "tanh RNN, spectral radius 3": [0.3 * 1.3**i for i in range(40)],
            "LSTM": [0.1 * 0.6**i for i in range(40)],
            "GRU": [0.2 * 0.62**i for i in range(40)],
            "Transformer encoder": [8.0] + [0.1 + 0.02 * math.sin(i) for i in range(39)],
        },
        "layer_costs": [
            _cost(layer, n, d)
            for layer in ("self-attention", "lstm")
            for n, d in [(2**k, 128) for k in range(5, 12)] + [(128, 2**k) for k in (5, 6, 8, 9)]
        ],
    }


def _run(name: str, place: int, pairs: int = 20_000) -> dict[str, Any]:
    attends = place >= 3
    quality = 12 + 3 * place + 4 * math.log2(pairs / 20_000)
    steps = [100 * k for k in range(1, 41)]
    seconds = [0.1 * (1 + 0.2 * (6 - place)) * step for step in steps]
    loss = [2.2 - 0.1 * place + 6 * math.exp(-step / (500 + 100 * place)) for step in steps]
    curve = [
        {"step": s, "target_tokens": 500 * s, "seconds": t, "loss": x, "gradient_norm": 1 / x}
        for s, t, x in zip(steps, seconds, loss)
    ]
    curve[7] |= {"loss": math.nan, "gradient_norm": None}
    return {
        "name": name,
        "config": {
            "seed": 0,
            "model": {"kind": name.split()[0].lower(), "attention": "dot" if attends else "none"},
            "data": {"max_pairs": 0, "batching": "bucketed"},
        },
        "pairs": pairs,
        "limited": pairs < 20_000,
        "status": "done",
        "error": "",
        "parameters": 3_456_789 + 100_000 * place,
        "updates": 4000,
        "target_tokens": 2_000_000,
        "train_seconds": seconds[-1],
        "train_tokens_per_s": 2_000_000 / seconds[-1],
        "decode_tokens_per_s": None if place == 1 else 5000.0 + place,
        "seconds_per_epoch": 41.5 + place,
        "bleu": _interval(quality),
        "chrf": _interval(30 + quality),
        "bleu_signature": "nrefs:1|bs:1000|seed:12345|case:mixed|eff:no|tok:13a|smooth:exp",
        "chrf_signature": "nrefs:1|bs:1000|seed:12345|case:mixed|eff:yes|nc:6|nw:0|space:no",
        "loss_curve": curve,
        "valid_curve": [
            {name: point[name] for name in ("step", "target_tokens", "seconds")}
            | {"loss": loss[i] + 0.2, "bleu": quality * (1 - math.exp(-i / 12)), "chrf": None}
            for i, point in list(enumerate(curve))[3::4]
        ],
        "by_length": [
            {
                "from": 4 * k + 1,
                "to": 4 * k + 4,
                "sentences": 160 + k,
                "bleu": _interval(quality + (2 if attends else -2.2 * k)),
                "chrf": _interval(quality + 30 + (1 if attends else -3 * k)),
                "length_ratio": 1 - 0.02 * k,
            }
            for k in range(6)
        ],
        "gradient_by_distance": None
        if name == "GRU"
        else [0.7 ** (i / (place + 1)) for i in range(40)],
        "samples": [_sample(source, attends) for source in _SOURCES],
    }


_SOURCES = [
    "A dog runs <script>alert('x')</script> & barks.",
    "Two men in red shirts stand in front of a very old house and talk.",
]
_TRANSLATION = "개 한 마리가 <b>들판</b>을 달린다 ."


def _sample(source: str, attends: bool) -> dict[str, Any]:
    source_tokens = ["▁" + word for word in source.split()] + ["<eos>"]
    target_tokens = ["▁" + word for word in _TRANSLATION.split()] + ["<eos>"]
    weights = [
        [math.exp(-abs(t - s)) / 2 for s in range(len(source_tokens))]
        for t in range(len(target_tokens))
    ]
    attention = {"source_tokens": source_tokens, "target_tokens": target_tokens}
    return {
        "source": source,
        "reference": "개가 달린다.",
        "translation": _TRANSLATION,
        "attention": attention | {"weights": weights} if attends else None,
    }


def _interval(score: float) -> dict[str, float]:
    return {"score": score, "mean": score + 0.1, "half_width": 1.3}


def _test(first: str, second: str) -> dict[str, Any]:
    chrf = None if second == "GRU" else {"difference": -0.4, "p_value": 0.31}
    return {"first": first, "second": second, "bleu": {"difference": 3.0, "p_value": 0.001}} | {
        "chrf": chrf
    }


def _cost(layer: str, n: int, d: int) -> dict[str, Any]:
    attention = layer == "self-attention"
    return {
        "layer": layer,
        "n": n,
        "d": d,
        "seconds": 1e-9 * (n * n * d + 4 * n * d * d if attention else 3 * n * d * d + 20_000 * n),
        "bytes": None if (layer, n) == ("lstm", 32) else n * (n + d if attention else 10 * d) * 4,
        "operations": n * n * d if attention else n * d * d,
        "steps": 1 if attention else n,
    }
