"""Translates: python decode.py --workdir=runs/quickstart < source > target; see --help."""

from transformer_jax.__main__ import main

if __name__ == "__main__":
    main("decode")
