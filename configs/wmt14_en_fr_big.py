"""WMT 2014 English to French, the paper's big model (its Tables 2 and 3).

Source: Vaswani et al. 2017, sections 5 and 6.1: 36 million pairs, a vocabulary of 32,000,
300,000 updates, dropout 0.1 instead of 0.3, the last 20 checkpoints averaged.

Expected: the paper reports 41.8 BLEU on newstest2014 (tokenised). Not yet run here. The
paper needed 3.5 days on 8 P100 GPUs.

    transformer-jax train --config=wmt14_en_fr_big --workdir=runs/wmt14_en_fr_big
    transformer-jax decode --workdir=runs/wmt14_en_fr_big --average=20 --score \
        --corpus=tfds:wmt14_translate/fr-en:test
"""

from transformer_jax.config import Config, load_config


def get_config() -> Config:
    """The big model's run, on French."""
    config = load_config("wmt14_en_de_big")
    data = config.data
    data.train = "tfds:wmt14_translate/fr-en:train"
    data.valid = "tfds:wmt14_translate/fr-en:validation"
    data.test = "tfds:wmt14_translate/fr-en:test"
    data.target_language, data.vocab_size, data.vocabulary_kind = "fr", 32_000, "unigram"
    config.model.dropout_rate = 0.1
    return config
