"""Fused kernels of attention, whose weights [B, H, T, M] never lie in memory, and their choice."""

import functools

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend import backend
from jax.sharding import PartitionSpec

from transformer_jax.config import ModelConfig
from transformer_jax.model.masks import SegmentMask
from transformer_jax.model.pallas_attention import padded, pallas_attention, takes_rows
from transformer_jax.model.stack import KERNEL
from transformer_jax.sharding import ROWS

_PLATFORMS = {"cudnn": ("gpu", "cuda"), "pallas": ("tpu",)}


def choose_kernel(config: ModelConfig, platform: str) -> str:
    """The kernel, "xla", "cudnn" or "pallas", that a Transformer's config asks for.

    Args:
      config: whose `attention_kernel` may be "auto", the platform's.
      platform: to compute on, as JAX names it.

    Raises:
      ValueError: the kernel cannot run there.
    """
    problems = {kernel: _problem(config, kernel, platform) for kernel in _PLATFORMS}
    if config.attention_kernel == "auto":
        return next((kernel for kernel, problem in problems.items() if not problem), "xla")
    if problem := problems.get(config.attention_kernel):
        raise ValueError(f"config.model.attention_kernel={config.attention_kernel} needs {problem}")
    return config.attention_kernel


def _problem(config: ModelConfig, kernel: str, platform: str) -> str:
    """What a kernel needs and does not have, or ""."""
    head_dim = config.model_dim // config.num_heads
    is_rocm = "rocm" in backend.get_backend().platform_version  # GPUs to JAX, too
    if platform not in _PLATFORMS[kernel] or kernel == "cudnn" and is_rocm:
        return f"{'a TPU' if kernel == 'pallas' else 'an NVIDIA GPU'}; this is for a {platform}"
    if head_dim % 8 or head_dim > 128:
        return f"model_dim / num_heads to be a multiple of 8, at most 128; it is {head_dim}"
    if kernel == "cudnn" and config.dtype != "bfloat16":
        return f"config.model.dtype=bfloat16; it is {config.dtype}"
    capability = getattr(jax.local_devices()[0], "compute_capability", "")  # of a GPU that is here
    if kernel == "cudnn" and capability and float(capability) < 8:
        return f"compute capability 8.0 (Ampere) or newer; this GPU has {capability}"
    return ""


def fused_attention(
    query_BHTK: jax.Array, key_BHMK: jax.Array, value_BHMK: jax.Array, mask: SegmentMask
) -> jax.Array | None:
    """Attention [B, H, T, K] by the mask's kernel; None where the rows are not for it."""
    if mask.kernel == "pallas" and not takes_rows(query_BHTK, key_BHMK):
        return None
    # XLA does not split a kernel over a mesh of devices: each runs it on its share.
    attend, mesh = _KERNELS[mask.kernel], jax.sharding.get_abstract_mesh()
    if not mesh.empty and not mesh.manual_axes:
        heads, rows = PartitionSpec(ROWS, None, "tensor"), PartitionSpec(ROWS)
        specs = {"in_specs": (heads, heads, heads, rows), "out_specs": heads}
        attend = jax.shard_map(attend, mesh=mesh, **specs, check_vma=False)
    arrays_BTHK = [x.swapaxes(1, 2) for x in (query_BHTK, key_BHMK, value_BHMK)]
    attended_BTHK = attend(*arrays_BTHK, mask)
    if mask.kernel == "pallas":  # cuDNN's result is known by its primitive, and kept once
        attended_BTHK = checkpoint_name(attended_BTHK, KERNEL)
    return attended_BTHK.swapaxes(1, 2)


def _cudnn(query_BTHK, key_BMHK, value_BMHK, mask: SegmentMask) -> jax.Array:
    """Lengths are made even, which cuDNN needs for a gradient with a mask."""
    mask = SegmentMask(padded(mask.query_BT, 2), padded(mask.key_BM, 2), mask.causal, mask.kernel)
    arrays = [padded(x, 2) for x in (query_BTHK, key_BMHK, value_BMHK)]
    attend = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    return attend(*arrays, mask=mask.dense()[:, None])[:, : query_BTHK.shape[1]]


_KERNELS = {"cudnn": _cudnn, "pallas": pallas_attention}
