"""WMT 2014 English to German, the paper's big model (its Tables 2 and 3).

Source: Vaswani et al. 2017, sections 5 and 6.1: as the base model, with 300,000 updates,
dropout 0.3, and the last 20 checkpoints averaged.

Expected: the paper reports 28.4 BLEU on newstest2014 (tokenised, compounds split). Not yet
run here. The paper needed 3.5 days on 8 P100 GPUs.

    transformer-jax train --config=wmt14_en_de_big --workdir=runs/wmt14_en_de_big
    transformer-jax decode --workdir=runs/wmt14_en_de_big --average=20 --score \
        --corpus=tfds:wmt14_translate/de-en:test
"""

from transformer_jax.config import Config, load_config


def get_config() -> Config:
    """The base model's run, larger and longer."""
    config = load_config("wmt14_en_de_base")
    model, training = config.model, config.training
    model.model_dim, model.num_heads, model.feed_forward_dim = 1024, 16, 4096
    model.dropout_rate = 0.3
    training.num_steps, training.keep_checkpoints = 300_000, 20
    return config
