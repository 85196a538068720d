"""Quick start: English number words to German, nothing to download."""

from transformer_jax.config import (
    Config,
    DataConfig,
    DecodingConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
)


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            num_layers=2, model_dim=128, num_heads=4, feed_forward_dim=512, dropout_rate=0.05
        ),
        data=DataConfig(
            train="numbers:train",
            valid="numbers:valid",
            test="numbers:test",
            vocab_size=200,
            vocabulary_kind="bpe",
            max_length=48,
            max_pairs=60_000,
            num_buckets=1,
            tokens_per_batch=4096,
        ),
        optimizer=OptimizerConfig(
            schedule="cosine", learning_rate=2e-3, warmup_steps=100, clip_norm=1.0
        ),
        training=TrainingConfig(
            num_steps=1200, log_every=50, eval_every=600, eval_sentences=200, save_every=600
        ),
        decoding=DecodingConfig(max_length=64),
    )
