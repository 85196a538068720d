"""Multi30k, English to German."""

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
            num_layers=4, model_dim=256, num_heads=4, feed_forward_dim=512, dropout_rate=0.3
        ),
        data=DataConfig(
            train="text:../shared/data/multi30k-en-de/train",
            valid="text:../shared/data/multi30k-en-de/valid",
            test="text:../shared/data/multi30k-en-de/test",
            vocab_size=6000,
            max_length=80,
            num_buckets=8,
            tokens_per_batch=4096,
        ),
        optimizer=OptimizerConfig(
            schedule="cosine", learning_rate=2e-3, warmup_steps=400, clip_norm=1.0
        ),
        training=TrainingConfig(
            num_steps=3000, log_every=50, eval_every=500, eval_sentences=250, save_every=500
        ),
        decoding=DecodingConfig(max_length=100),
    )
