"""From the bottleneck to the Transformer: six models of about equal size on the same captions.

Source: Multi30k task 1, English to German, as in multi30k_en_de.py. Each is small, of about 2.46
million parameters, to be trained for equally many target tokens:

    transformer-jax compare --workdir=runs/story --target_tokens=2500000 \
        --configs=story:lstm,story:lstm_dot,story:lstm_additive

or each by itself:

    python train.py --config=configs/story.py:lstm_dot --workdir=runs/lstm_dot

Record (2026-11-21, 2 CPU cores, Python 3.12, JAX 0.12.0, float32, seed 0, --target_tokens=2500000):
test BLEU lstm 9.5, lstm_additive 19.7, bilstm2_dot 23.0, lstm_dot 30.2, gru_dot 31.8, transformer
30.5; 1,511 updates, 6 to 9 minutes each at the speeds measured. Nothing was tuned.
"""

from transformer_jax.config import (
    Config,
    DataConfig,
    DecodingConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
)

MODELS = {
    # Sutskever et al. 2014.
    "lstm": {"kind": "lstm", "attention": "none", "num_layers": 1, "model_dim": 248},
    # Luong et al. 2015.
    "lstm_dot": {"kind": "lstm", "attention": "dot", "num_layers": 1, "model_dim": 240},
    # Bahdanau et al. 2015, with LSTM cells.
    "lstm_additive": {"kind": "lstm", "attention": "additive", "num_layers": 1, "model_dim": 208},
    "gru_dot": {"kind": "gru", "attention": "dot", "num_layers": 1, "model_dim": 256},
    "bilstm2_dot": {
        "kind": "lstm",
        "attention": "dot",
        "num_layers": 2,
        "model_dim": 194,
        "bidirectional": True,
    },
    # Vaswani et al. 2017.
    "transformer": {
        "kind": "transformer",
        "num_layers": 4,
        "model_dim": 128,
        "num_heads": 4,
        "feed_forward_dim": 432,
        "norm": "pre",
    },
}


def get_config(name: str = "transformer") -> Config:
    """The run of one of the models."""
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r} in the story, only {', '.join(MODELS)}")
    return Config(
        model=ModelConfig(dropout_rate=0.2, **MODELS[name]),
        data=DataConfig(
            train="multi30k:train",
            valid="multi30k:valid",
            test="multi30k:test",
            vocab_size=6000,
            max_length=80,
            batching="bucketed",
            tokens_per_batch=2048,
        ),
        optimizer=OptimizerConfig(
            schedule="cosine", learning_rate=3e-3, warmup_steps=200, clip_norm=1.0
        ),
        training=TrainingConfig(
            num_steps=1500, log_every=50, eval_every=500, eval_sentences=300, save_every=500
        ),
        decoding=DecodingConfig(max_length=100),
    )
