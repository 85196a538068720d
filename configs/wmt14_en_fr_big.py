"""WMT 2014 English to French, the paper's big model (its Tables 2 and 3).

Source: Vaswani et al. 2017, sections 5 and 6.1: 36 million pairs, a vocabulary of 32,000,
300,000 updates, dropout 0.1 instead of 0.3, the last 20 checkpoints averaged.

Expected: the paper reports 41.8 BLEU on newstest2014 (tokenised). Not yet run here. The
paper needed 3.5 days on 8 P100 GPUs.

    python train.py --config=configs/wmt14_en_fr_big.py --workdir=runs/wmt14_en_fr_big
    python decode.py --workdir=runs/wmt14_en_fr_big --average=20 --score \
        --corpus=tfds:wmt14_translate/fr-en:test
"""

from transformer_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainingConfig


def get_config() -> Config:
    """The big model; bfloat16 is meant for GPU and TPU."""
    return Config(
        model=ModelConfig(
            model_dim=1024,
            num_heads=16,
            feed_forward_dim=4096,
            dropout_rate=0.1,
            dtype="bfloat16",
        ),
        data=DataConfig(
            train="tfds:wmt14_translate/fr-en:train",
            valid="tfds:wmt14_translate/fr-en:validation",
            test="tfds:wmt14_translate/fr-en:test",
            target_language="fr",
            vocab_size=32_000,
            max_length=256,
            tokens_per_batch=25_000,
        ),
        optimizer=OptimizerConfig(schedule="rsqrt", warmup_steps=4000),
        training=TrainingConfig(
            num_steps=300_000, eval_every=5000, save_every=1500, keep_checkpoints=20
        ),
    )
