"""Multi30k, English to German, by GRUs with additive attention.

Source: the model is that of Bahdanau et al. 2015 (one layer, an encoder in both directions,
additive attention that the state before the step asks, a maxout output, their initialisation,
gradients cut at a norm of 1); see model/recurrent.py for how it differs. They had no dropout; so
little data wants some. The data is that of multi30k_en_de.py.

    transformer-jax train --config=multi30k_gru --workdir=runs/multi30k_gru

Not yet run to its end.
"""

from transformer_jax.config import Config, ModelConfig, load_config


def get_config() -> Config:
    """The LSTM's run, with another model and another norm of gradients."""
    config = load_config("multi30k_lstm")
    config.model = ModelConfig(
        kind="gru",
        num_layers=1,
        model_dim=256,
        dropout_rate=0.2,
        attention="additive",
        bidirectional=True,
    )
    config.optimizer.clip_norm = 1.0
    return config
