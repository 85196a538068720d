"""Multi30k, English to German, by LSTMs with attention: two layers, the encoder in both directions.

Source: the model is that of Luong et al. 2015 (general attention after the cells, input feeding,
dropout 0.2, uniform initialisation) with the bidirectional encoder of Bahdanau et al. 2015; see
model/recurrent.py for how it differs. The data is that of multi30k_en_de.py. Luong et al. cut
gradients at a norm of 5, of sums over a sentence; here a gradient is the mean over tokens.

    transformer-jax train --config=multi30k_lstm --workdir=runs/multi30k_lstm

Not yet run to its end.
"""

from transformer_jax.config import Config, ModelConfig, load_config


def get_config() -> Config:
    """RNNs read one pair a row: bucketed batches."""
    config = load_config("multi30k_en_de")
    config.model = ModelConfig(
        kind="lstm",
        num_layers=2,
        model_dim=256,
        dropout_rate=0.2,
        attention="general",
        input_feeding=True,
        bidirectional=True,
    )
    config.data.batching = "bucketed"
    optimizer = config.optimizer
    optimizer.learning_rate, optimizer.warmup_steps, optimizer.clip_norm = 2e-3, 200, 5.0
    config.training.num_steps, config.training.eval_every = 6000, 1000
    return config
