"""Accelerators by their makers' public descriptions, and the one that JAX finds here."""

from typing import NamedTuple

import jax


class Chip(NamedTuple):
    """An accelerator."""

    memory: float  # bytes
    flops: float  # a second, dense, bfloat16
    bandwidth: float  # bytes a second, of its memory
    links: float  # bytes a second to other chips, in one direction, all links
    compiler: str  # its name for XLA: of a TPU's topology, or compute capability and cores
    kind: str  # its name for JAX, as a device's `device_kind`


# Cloud TPU documentation, "System architecture"; NVIDIA's data sheets of the SXM cards.
CHIPS = {
    "tpu:v4": Chip(32e9, 275e12, 1.228e12, 300e9, "v4", "TPU v4"),
    "tpu:v5e": Chip(16e9, 197e12, 0.819e12, 200e9, "v5e", "TPU v5 lite"),
    "tpu:v5p": Chip(95e9, 459e12, 2.765e12, 600e9, "v5", "TPU v5"),
    "tpu:v6e": Chip(32e9, 918e12, 1.640e12, 448e9, "v6e", "TPU v6 lite"),
    "gpu:a100-80": Chip(80e9, 312e12, 2.039e12, 300e9, "8.0 108", "NVIDIA A100-SXM4-80GB"),
    "gpu:h100": Chip(80e9, 989e12, 3.352e12, 450e9, "9.0 132", "NVIDIA H100 80GB HBM3"),
    "gpu:h200": Chip(141e9, 989e12, 4.8e12, 450e9, "9.0 132", "NVIDIA H200"),
    "gpu:b200": Chip(180e9, 2250e12, 8e12, 900e9, "10.0 148", "NVIDIA B200"),
}


def peak_flops() -> float:
    """FLOPs a second, dense, bfloat16, of all devices of the run; 0 where their peak is unknown."""
    kind = jax.devices()[0].device_kind
    peaks = [chip.flops for chip in CHIPS.values() if chip.kind == kind]
    return sum(peaks) * jax.device_count()
