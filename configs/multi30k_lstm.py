"""Multi30k, English to German, by LSTMs with attention: two layers, the encoder in both directions.

Source: the model is that of Luong et al. 2015 (general attention after the cells, input feeding,
dropout 0.2, uniform initialisation) with the bidirectional encoder of Bahdanau et al. 2015; see
model/recurrent.py for how it differs. The data is that of multi30k_en_de.py. Luong et al. cut
gradients at a norm of 5, of sums over a sentence; here a gradient is the mean over tokens.

    python train.py --config=configs/multi30k_lstm.py --workdir=runs/multi30k_lstm

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
            kind="lstm",
            num_layers=2,
            model_dim=256,
            dropout_rate=0.2,
            attention="general",
            input_feeding=True,
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
            schedule="cosine", learning_rate=2e-3, warmup_steps=200, clip_norm=5.0
        ),
        training=TrainingConfig(
            num_steps=6000, log_every=50, eval_every=1000, eval_sentences=500, save_every=500
        ),
        decoding=DecodingConfig(max_length=100),
    )
