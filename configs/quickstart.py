"""Quick start: English number words to German, nothing to download.

Source: numbers 0 to 999,999 in words, by num2words; 60,000 of them to train on, short ones and
ones without a comma often among them, and 1,000 each to validate and to test on that are in no
other split. The first hundred numbers, which it has seen, are a test as well.

    transformer-jax train --config=quickstart --workdir=runs/quickstart

--config.data.target_language=ko and fr work as well.

Record (2026-11-25, 2 CPU cores, everything cold, Python 3.11, JAX 0.10.2): German 100.0 % exact
match on the test numbers and on 0 to 999, with commas and without; 88 s. On 2026-11-20, trained on
numbers:train, on another machine: German 100.0 %, 66 s; Korean 99.9 %, 48 s (Python 3.12).
"""

from transformer_jax.config import (
    Config,
    DataConfig,
    DecodingConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
)


def get_config() -> Config:
    """Small enough for two CPU cores and a minute."""
    return Config(
        model=ModelConfig(
            num_layers=2, model_dim=128, num_heads=4, feed_forward_dim=512, dropout_rate=0.05
        ),
        data=DataConfig(
            train="numbers:spoken",
            valid="numbers:valid",
            test="numbers:test,numbers:0-99",
            vocab_size=200,
            vocabulary_kind="bpe",
            byte_fallback=False,
            max_length=48,
            max_pairs=60_000,
            tokens_per_batch=2048,
        ),
        optimizer=OptimizerConfig(
            schedule="cosine", learning_rate=2e-3, warmup_steps=150, clip_norm=1.0
        ),
        training=TrainingConfig(
            num_steps=600,
            log_every=100,
            eval_every=300,
            eval_sentences=200,
            save_every=300,
            best_metric="loss",
        ),
        decoding=DecodingConfig(max_length=64),
    )
