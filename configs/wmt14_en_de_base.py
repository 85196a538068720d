"""WMT 2014 English to German, the paper's base model (its Tables 2 and 3).

Source: Vaswani et al. 2017, sections 5 and 6.1: 4.5 million pairs, a shared vocabulary of
about 37,000, about 25,000 tokens a side and update, 100,000 updates, the last 5 checkpoints
averaged.

Expected: the paper reports 27.3 BLEU on newstest2014 (tokenised, compounds split, which is
not sacreBLEU's 13a). Not yet run here; the data set has to be downloaded by TensorFlow
Datasets first. The paper needed 12 hours on 8 P100 GPUs.

    transformer-jax train --config=wmt14_en_de_base --workdir=runs/wmt14_en_de_base
    transformer-jax decode --workdir=runs/wmt14_en_de_base --average=5 --score \
        --corpus=tfds:wmt14_translate/de-en:test
"""

from transformer_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainingConfig


def get_config() -> Config:
    """The base model; bfloat16 is meant for GPU and TPU."""
    return Config(
        model=ModelConfig(dtype="bfloat16"),
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
        training=TrainingConfig(num_steps=100_000, eval_every=5000, save_every=1500),
    )
