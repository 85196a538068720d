"""English and Korean, both directions in one model, for two CPU cores and an hour.

Source: a parallel corpus of yours: corpus/train, corpus/valid and corpus/test, each with .en and
.ko, a sentence a line; docs/data.md says where there is Korean. One model reads each pair twice, a
direction each; the source begins with its target language (Johnson et al. 2017).

    transformer-jax train --config=en_ko --workdir=runs/en_ko
    transformer-jax decode --workdir=runs/en_ko --target_language=ko

Not yet run to its hour; RESULTS.md has what 2,767 updates gave.
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
    """A schedule without an end and a mean of parameters: the run may stop at any update."""
    return Config(
        model=ModelConfig(
            num_layers=3, model_dim=128, num_heads=4, feed_forward_dim=512, norm="pre"
        ),
        data=DataConfig(
            train="text:corpus/train@en-ko,text:corpus/train@ko-en",
            valid="text:corpus/valid@en-ko,text:corpus/valid@ko-en",
            test="text:corpus/test@en-ko,text:corpus/test@ko-en",
            language_tags=True,
            target_language="ko",
            max_length=100,
            tokens_per_batch=1024,
        ),
        optimizer=OptimizerConfig(
            schedule="rsqrt", learning_rate=3e-3, warmup_steps=400, clip_norm=1.0, ema_decay=0.999
        ),
        training=TrainingConfig(
            num_steps=12_000,
            log_every=100,
            eval_every=2000,
            eval_sentences=200,
            save_every=500,
            best_metric="loss",
        ),
        decoding=DecodingConfig(max_length=120),
    )
