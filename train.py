"""Trains a model: python train.py --config=quickstart --workdir=runs/quickstart; see --help."""

from transformer_jax.__main__ import main

if __name__ == "__main__":
    main("train")
