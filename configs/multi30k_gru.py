"""Multi30k, English to German, by GRUs with additive attention.

Source: the model is that of Bahdanau et al. 2015 (one layer, an encoder in both directions,
additive attention that the state before the step asks, a maxout output, their initialisation,
gradients cut at a norm of 1); see model/recurrent.py for how it differs. They had no dropout; so
little data wants some. The data is that of multi30k_en_de.py.

    python train.py --config=configs/multi30k_gru.py --workdir=runs/multi30k_gru

Not yet run to its end.
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
    """RNNs read one pair a row: bucketed batches."""
    return Config(
        model=ModelConfig(
            kind="gru",
            num_layers=1,
            model_dim=256,
            dropout_rate=0.2,
            attention="additive",
            bidirectional=True,
        ),
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
            schedule="cosine", learning_rate=2e-3, warmup_steps=200, clip_norm=1.0
        ),
        training=TrainingConfig(
            num_steps=6000, log_every=50, eval_every=1000, eval_sentences=500, save_every=500
        ),
        decoding=DecodingConfig(max_length=100),
    )
