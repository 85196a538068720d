"""From the bottleneck to the Transformer: six models of about equal size on the same captions.

Source: Multi30k task 1, English to German, as in multi30k_en_de.py. Each is small, of about 2.46
million parameters, to be trained for equally many target tokens:

    transformer-jax compare --workdir=runs/story --target_tokens=2500000 \
        --configs=story:lstm,story:lstm_dot,story:lstm_additive

or each by itself:

    transformer-jax train --config=story:lstm_dot --workdir=runs/lstm_dot

Record (2026-11-21, 2 CPU cores, Python 3.12, JAX 0.12.0, float32, seed 0, --target_tokens=2500000):
test BLEU lstm 9.5, lstm_additive 19.7, bilstm2_dot 23.0, lstm_dot 30.2, gru_dot 31.8, transformer
30.5; 1,511 updates, 6 to 9 minutes each at the speeds measured. Nothing was tuned.
"""

from transformer_jax.config import Config, ModelConfig, load_config

MODELS = {
    # Sutskever et al. 2014.
    "lstm": ModelConfig(kind="lstm", num_layers=1, model_dim=248, attention="none"),
    # Luong et al. 2015.
    "lstm_dot": ModelConfig(kind="lstm", num_layers=1, model_dim=240),
    # Bahdanau et al. 2015, with LSTM cells.
    "lstm_additive": ModelConfig(kind="lstm", num_layers=1, model_dim=208, attention="additive"),
    "gru_dot": ModelConfig(kind="gru", num_layers=1, model_dim=256),
    "bilstm2_dot": ModelConfig(kind="lstm", num_layers=2, model_dim=194, bidirectional=True),
    # Vaswani et al. 2017.
    "transformer": ModelConfig(
        num_layers=4, model_dim=128, num_heads=4, feed_forward_dim=432, norm="pre"
    ),
}


def get_config(name: str = "transformer") -> Config:
    """The run of one of the models."""
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r} in the story, only {', '.join(MODELS)}")
    config = load_config("multi30k_en_de")
    config.model, config.model.dropout_rate = MODELS[name], 0.2
    config.data.batching = "bucketed"
    config.optimizer.warmup_steps = 200
    training = config.training
    training.num_steps, training.eval_every, training.eval_sentences = 1500, 500, 300
    return config
