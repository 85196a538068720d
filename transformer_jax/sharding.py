"""How a run lies on its devices: copied to each, or its arrays split over a mesh.

Both layouts have the same methods: `shardings` of a state, `place` for batches, `parallel` for
steps, and the hooks that the body of a step needs. The default copies the state to all devices and
maps the step over them (pmap). A mesh splits rows over its axes `data` and `fsdp`, parameters and
optimiser state over `fsdp` and `tensor` by one table of rules; the body sees whole arrays, and XLA
splits the work (GSPMD, Xu et al. 2021; FSDP as ZeRO 3, Rajbhandari et al. 2020; tensor as
Megatron-LM, Shoeybi et al. 2019).
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from transformer_jax import devices
from transformer_jax.config import Config

ROWS = ("data", "fsdp")  # the axes of the mesh that rows are split over

# The first pattern found in a parameter's path says which axis each of its last dimensions is split
# over. A dimension that the axis does not divide stays whole, as do all others.
RULES = (
    (r"embedding.*table", (("fsdp", "tensor"), None)),  # [V, D]: else activations are split
    (r"\bprojections.*kernel", ("fsdp", None, "tensor", None)),  # [D, C, H, K]
    (r"\bprojections.*bias", ("tensor", None)),  # [C, H, K]
    (r"\bexpand\.kernel", ("fsdp", "tensor")),  # [D, F]
    (r"\bexpand\.bias", ("tensor",)),
    (r"\b(output|contract)\.kernel", ("tensor", "fsdp")),  # [H * K, D], [F, D]
    (r"kernel", ("fsdp", None)),
)


def layout_of(config: Config) -> "DataParallel | Sharded":
    """The layout that a config asks for, on all devices there are.

    Raises:
      ValueError: the devices cannot be divided so.
    """
    return DataParallel() if is_copied(config) else Sharded(config)


def is_copied(config: Config) -> bool:
    """Whether each device has a copy of the state, the default."""
    return config.parallel.fsdp == config.parallel.tensor == 1 and not config.parallel.data


class DataParallel:
    """The state copied to every device, the rows split over them by pmap."""

    parallel, place = staticmethod(devices.parallel), staticmethod(devices.place)
    put = staticmethod(devices.replicate)
    hooks: dict[str, Callable] = {}  # those of the step's body are pmap's by default

    def shardings(self, tree: Any) -> Any:
        """Where each array of a state lies."""
        sharding = devices.replicated()
        return jax.tree.map(lambda _: sharding, tree)

    def local_copies(self, tree: Any) -> Any:
        """The arrays of a state whole on each of this process' devices, to decode with."""
        return devices.local_copies(tree)


class Sharded:
    """A mesh of the axes data, fsdp and tensor."""

    def __init__(self, config: Config, all_devices: list[jax.Device] | None = None):
        parallel, all_devices = config.parallel, all_devices or jax.devices()
        split = parallel.fsdp * parallel.tensor
        data = parallel.data or len(all_devices) // split
        if data * split != len(all_devices):
            raise ValueError(
                f"config.parallel.data={parallel.data}, fsdp={parallel.fsdp} and "
                f"tensor={parallel.tensor} do not divide the {len(all_devices)} devices there are"
            )
        of_process = len(all_devices) // jax.process_count()
        if of_process % parallel.tensor:
            raise ValueError(
                f"config.parallel.tensor={parallel.tensor} does not divide the {of_process} "
                "devices of a process"
            )
        shape = data, parallel.fsdp, parallel.tensor
        axes = {"axis_types": (AxisType.Auto,) * 3}
        self.mesh = Mesh(np.array(all_devices).reshape(shape), (*ROWS, "tensor"), **axes)
        self.num_rows = data * parallel.fsdp // jax.process_count()
        self.hooks = {
            "reduce": lambda tree: tree,  # the sums of the body are over all rows
            "device_index": lambda: 0,
            # Every n-th row: those of a micro-batch lie on all devices.
            "micro_batches": lambda x, n: x.reshape(-1, n, *x.shape[1:]).swapaxes(0, 1),
            "over_rows": self._over_rows,
        }

    def _over_rows(self, sums: Callable) -> Callable:
        """sums(params, rows) of each device's rows, added up.

        XLA left alone would gather the rows of each chunk, or add gradients up after each. Of
        params, the table and bias of the logits, a device has its part of V by `tensor` alone.
        """
        tensor = self.mesh.shape["tensor"]

        def split_alone(x: jax.Array) -> jax.Array:
            spec = PartitionSpec(None if x.shape[0] % tensor else "tensor")
            return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

        each = jax.shard_map(
            lambda params, rows: jax.lax.psum(sums(params, rows), ROWS),
            mesh=self.mesh,
            in_specs=(PartitionSpec(), PartitionSpec(ROWS)),
            out_specs=PartitionSpec(),
            axis_names=set(ROWS),
            check_vma=False,
        )
        return lambda params, rows: each(jax.tree.map(split_alone, params), rows)

    def shardings(self, tree: Any) -> Any:
        """Where each array of a state lies, by `RULES`; moments lie as their parameters."""
        return jax.tree_util.tree_map_with_path(
            lambda path, x: NamedSharding(self.mesh, self._spec(path, x.shape)), tree
        )

    def _spec(self, path: tuple, shape: tuple[int, ...]) -> PartitionSpec:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        axes = next((axes for pattern, axes in RULES if re.search(pattern, name)), ())
        if len(axes) > len(shape):
            return PartitionSpec()
        axes = (None,) * (len(shape) - len(axes)) + axes

        def count(axes: str | tuple[str, ...]) -> int:
            return math.prod(self.mesh.shape[a] for a in np.atleast_1d(axes))

        return PartitionSpec(*(a if a and n % count(a) == 0 else None for a, n in zip(axes, shape)))

    def put(self, tree: Any) -> Any:
        """Puts the arrays of a state, the same in each process, where `shardings` says."""

        def part(x: Any, sharding: NamedSharding) -> jax.Array:
            x = np.array(x)  # its own: a donated step frees it
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

        return jax.tree.map(part, tree, self.shardings(tree))

    def place(self, batch: Any, micro_batches: int = 1) -> Any:
        """Splits the rows of all processes' host batches: [rows, ...] arrays.

        Rows are padded to a multiple of devices times micro-batches; zeros are padding.
        """
        multiple = self.num_rows * micro_batches
        rows = jax.tree.map(lambda x: devices.padded(x, multiple), batch)
        return devices.put_rows(rows, NamedSharding(self.mesh, PartitionSpec(ROWS)))

    def parallel(self, step: Callable, *, donate_state: bool = False) -> Callable:
        """Compiles step(state, batch); with `donate_state` it returns a new state first."""

        def split(state, batch):
            # Kernels of attention, which XLA cannot split, find the mesh here.
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                result = step(state, batch)
            if not donate_state:
                return result
            state, metrics = result
            return jax.lax.with_sharding_constraint(state, self.shardings(state)), metrics

        return jax.jit(split, donate_argnums=0 if donate_state else ())

    def local_copies(self, tree: Any) -> Any:
        """The arrays of a state whole on each of this process' devices, to decode with."""
        whole = NamedSharding(self.mesh, PartitionSpec())
        gathered = jax.jit(lambda x: x, out_shardings=whole)(tree)
        return devices.replicate(gathered, local=True)
