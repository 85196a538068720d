"""WMT 2014 English to German, the paper's big model (its Tables 2 and 3).

Source: Vaswani et al. 2017, sections 5 and 6.1: as the base model, with 300,000 updates,
dropout 0.3, and the last 20 checkpoints averaged.

Expected: the paper reports 28.4 BLEU on newstest2014 (tokenised, compounds split). Not yet
run here. The paper needed 3.5 days on 8 P100 GPUs.

    python train.py --config=configs/wmt14_en_de_big.py --workdir=runs/wmt14_en_de_big
    python decode.py --workdir=runs/wmt14_en_de_big --average=20 --score \
        --corpus=tfds:wmt14_translate/de-en:test
"""

from transformer_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainingConfig


def get_config() -> Config:
    """The big model; bfloat16 is meant for GPU and TPU."""
    return Config(
        model=ModelConfig(
            model_dim=1024,
            num_heads=16,
            feed_forward_dim=4096,
            dropout_rate=0.3,
            dtype="bfloat16",
        ),
        data=DataConfig(
            train="tfds:wmt14_translate/de-en:train",
            valid="tfds:wmt14_translate/de-en:validation",
            test="tfds:wmt14_translate/de-en:test",
            vocab_size=37_000,
            vocabulary_kind="bpe",
            max_length=256,
            tokens_per_batch=25_000,
        ),
        optimizer=OptimizerConfig(schedule="rsqrt", warmup_steps=4000),
        training=TrainingConfig(
            num_steps=300_000, eval_every=5000, save_every=1500, keep_checkpoints=20
        ),
    )
