"""How the `tma` kernels are launched: at most as many blocks as there are multiprocessors, each of three warpgroups,
two consumers and one that feeds them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import compat, mosaic, shift
from pallas_kernels.epilogue import Epilogue, require
from pallas_kernels.matmul import end, tma
from pallas_kernels.matmul.tma import CONSUMERS, SHARED_BYTES, Tiles

Grid = tuple[int, int, int]


def launch(
    feed: Callable[..., None],
    consume: Callable[..., None],
    barriers: Callable[[int], dict[str, Any]],
    x: jax.Array,
    w: jax.Array,
    epilogue: Epilogue | None,
    *,
    out_dtype: jax.typing.DTypeLike,
    offset: jax.Array | None,
    config: Tiles,
    layout: Any,
    interpret: bool,
    name: str,
) -> jax.Array:
    """`matmul` as one Mosaic kernel, in a persistent grid.

    Args:
      feed: of (x, w, config, grid), with the ring and the barriers by their names: the third warpgroup. x and w are
        int8 with one batch axis; `grid` counts the batches and the clusters' tiles along M and N.
      consume: of (end, x, config, grid), with the same: a consumer, which ends with `end`.
      barriers: of the number of slots: what the kernel has beside the ring, `empty` among them.
      layout: of the accumulator in registers.

    Raises:
      UnsupportedShapeError: where the config, with that epilogue, does not fit into shared memory.
    """
    needed = tma.shared_bytes(config, epilogue, out_dtype)
    if needed > SHARED_BYTES:
        require(f"{config} needs {needed} bytes of shared memory with this epilogue, of {SHARED_BYTES}")
    *batch, m, k = x.shape
    n = w.shape[-2]
    x, w = x.reshape(-1, m, k), w.reshape(-1, n, k)
    if epilogue is not None and epilogue.residual is not None:
        epilogue = dataclasses.replace(
            epilogue,
            residual=epilogue.residual.reshape(-1, m, n),
            residual_multiplier=epilogue.residual_multiplier.reshape(1),
        )
    if x.dtype == jnp.uint8:
        x = shift.signed(x)
        offset = shift.offset(w, -1) if offset is None else offset.reshape(-1, n)
    else:
        offset = None
    grid = (x.shape[0], pl.cdiv(m, config.tile_m * config.cluster), pl.cdiv(n, config.tile_n))
    ring = tma.ring(config, k)

    def kernel(x: Any, w: Any, epilogue: Any, offset: Any, out: Any, *, ends: dict[str, Any], **shared: Any) -> None:
        me = lax.axis_index("warpgroup")

        def consumer() -> None:
            mine = end.End(config, me, epilogue, offset, out, layout=None if interpret else layout, **ends)
            consume(mine, x, config, grid, **shared)

        lax.cond(me == CONSUMERS, lambda: feed(x, w, config, grid, **shared), consumer)

    out = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((x.shape[0], m, n), out_dtype),
        scratch_types=ring
        | barriers(ring["x_ring"].shape[0])
        | {"ends": end.scratch(config, n, epilogue, offset, out_dtype)},
        grid=(min(compat.core_count() // config.cluster, grid[0] * grid[1] * grid[2]),),
        grid_names=("clusters",),
        cluster=(config.cluster,),
        cluster_names=("cluster",),
        num_threads=CONSUMERS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=mosaic.interpreter() if interpret else None,
        kernel_name=name,
    )(x, w, epilogue, offset)
    return out.reshape(*batch, m, n)
