"""The command transformer-jax, which is python -m transformer_jax as well."""

import importlib
import os
import signal
import sys
import types
from typing import NoReturn

import transformer_jax
from transformer_jax import allocator, cli, interruption
from transformer_jax.config import ready_configs

COMMANDS = {
    "train": "train a model, or resume",
    "decode": "translate, score or align",
    "compare": "train several models alike and report how they differ",
    "serve": "translate over HTTP, with a page to try it on",
