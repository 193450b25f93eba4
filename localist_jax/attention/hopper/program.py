"""Data movement of the kernels: one warpgroup fetches tiles into a ring of slots, the others compute on them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from localist_jax.attention.hopper.lists import FULL, GROUPS, ROWS, TILE, Lists, Side
from localist_jax.attention.hopper.steps import Settings

SHARED_MEMORY = 220 << 10  # bytes that a program may use


@dataclasses.dataclass(frozen=True)
class GpuKernel:
    """A kernel over work lists.

    Attributes:
      name, settings: name and static parameters.
      begin, step, end: functions that return the register state of half a row before the first visit and after each
        visit, and the results.
      narrow: results in bfloat16 with the layout of heads, each with the row's array whose shared memory it may reuse.
      wide: the shape per position of the other results, which are float32.
      row_side, visit_side: tile numbering of the arrays.
      turns: whether steps take turns at the tensor cores, twice each.
    """

    name: str
    settings: Settings
    begin: Callable
    step: Callable
    end: Callable
    narrow: dict[str, str]
    wide: dict[str, tuple[int, ...]]
    row_side: Side
    visit_side: Side
    turns: bool = False

    def __call__(self, lists: Lists, per_row: dict, per_visit: dict) -> dict[str, jax.Array]:
        """Run the kernel.

        Args:
          lists: the rows and their visits.
          per_row, per_visit: arrays by name: [B, tiles, C, heads, H], [B, tiles, C, K] if all heads share them, or by
            tile [R, C, …].

        Returns:
          Results by name: [B, tiles, C, heads of the lists, H] if narrow, else [rows, C, …].
        """
        rows = len(lists.order)
        if self.settings.emulated:
            return self._emulate(lists, per_row, per_visit)
        halves = {name: _halved(x) for name, x in per_row.items()}
        row_at = {name: (GROUPS, ROWS, *x.shape[2:][-1:]) for name, x in per_row.items()}
        slot_at = {name: (TILE, *x.shape[2:][-1:]) for name, x in per_visit.items()}
        each = sum(_bytes(shape, per_visit[name].dtype) for name, shape in slot_at.items())
        own = sum(_bytes(shape, per_row[name].dtype) for name, shape in row_at.items())
        buffers = 2 if 2 * (own + each) <= SHARED_MEMORY else 1
        slots = min(4, (SHARED_MEMORY - buffers * own) // each)
        if slots < 1:
            raise ValueError(
                f"attend: {self.name} needs {own + each} bytes of shared memory, there are {SHARED_MEMORY}"
            )
        batch, _, tiles = self.row_side
        heads = rows // batch // tiles
        out = {}
        for name, place in self.narrow.items():
            out[name] = jax.ShapeDtypeStruct(
                (batch, tiles, GROUPS, ROWS, heads, per_row[place].shape[-1]), jnp.bfloat16
            )
        for name, shape in self.wide.items():
            out[name] = jax.ShapeDtypeStruct((rows, GROUPS, ROWS, *shape), jnp.float32)
        scratch = (
            {name: _shared((buffers, *shape), per_row[name].dtype) for name, shape in row_at.items()},
            {name: _shared((slots, *shape), per_visit[name].dtype) for name, shape in slot_at.items()},
            plgpu.Barrier(num_arrivals=GROUPS * len(halves), num_barriers=buffers),
            plgpu.Barrier(num_arrivals=GROUPS, num_barriers=buffers),
            plgpu.Barrier(num_arrivals=len(per_visit), num_barriers=slots),
            plgpu.Barrier(num_arrivals=GROUPS, num_barriers=slots),
            plgpu.Barrier(num_arrivals=GROUPS),
        )
        programs = min(rows, _processors())
        run = plgpu.kernel(
            partial(self._program, rows, programs, (batch, heads, tiles)),
            out_type=out,
            scratch_types=scratch,
            grid=(programs,),
            grid_names=("program",),
            num_threads=GROUPS + 1,
            thread_name="group",
            compiler_params=plgpu.CompilerParams(approx_math=True),
        )
        scalars = [lists.order, lists.counts, lists.tile, lists.entries]
        results = run(scalars if lists.bias is None else [*scalars, lists.bias], halves, per_visit)
        for name, x in results.items():
            axis = 2 if name in self.narrow else 1
            results[name] = x.reshape(*x.shape[:axis], TILE, *x.shape[axis + 2 :])
        return results

    def _program(self, rows, programs, side, scalars, per_row, per_visit, out, row_at, slot_at, *barriers):
        loaded, released, filled, freed, turns = barriers
        s, group, first = self.settings, lax.axis_index("group"), lax.axis_index("program")
        order, counts, tiles, entries = scalars[:4]
        bias = scalars[4] if len(scalars) > 4 else None
        slots, buffers = (next(iter(x.values())).shape[0] for x in (slot_at, row_at))
        mine = lax.div(rows - 1 - first, jnp.int32(programs)) + 1

        def take_turns():
            plgpu.barrier_arrive(turns)
            plgpu.barrier_wait(turns)

        def work(i, done):
            row, buffer = order[first + i * programs], lax.rem(i, jnp.int32(buffers))
            count = counts[row]
            plgpu.barrier_wait(loaded.at[buffer])
            own = {name: ref.at[buffer, group] for name, ref in row_at.items()}

            def visit(j, carry):
                entry, shift, state = carry
                following = jnp.minimum(j + 1, count - 1)  # read early, to hide the latency
                then = entries[row, following], shift if bias is None else bias[row, following]
                slot = lax.rem(done + j, jnp.int32(slots))
                plgpu.barrier_wait(filled.at[slot])
                r = SimpleNamespace(**own, **{name: ref.at[slot] for name, ref in slot_at.items()})
                facts = SimpleNamespace(
                    full=entry >= FULL, bias=None if bias is None else shift, take_turns=take_turns
                )
                state = self.step(s, r, facts, state)
                plgpu.barrier_arrive(freed.at[slot])
                return *then, state

            r = SimpleNamespace(**own, **{name: ref.at[0] for name, ref in slot_at.items()})
            start = entries[row, 0], jnp.float32(0) if bias is None else bias[row, 0], self.begin(s, r)
            # One group runs half a visit behind the other until the row is done; the last turn lets it finish the row.
            pl.when(self.turns & (group == 1))(take_turns)
            *_, state = lax.fori_loop(0, count, visit, start)
            pl.when(self.turns & (group == 0))(take_turns)
            results = self.end(s, r, state)
            for name in self.wide:
                out[name][row, group] = results[name]
            for name, place in self.narrow.items():
                own[place][...] = results[name].astype(jnp.bfloat16)
            plgpu.commit_smem()
            for name, place in self.narrow.items():
                batch, head, tile = _places(row, side)
                plgpu.copy_smem_to_gmem(own[place], out[name].at[batch, tile, group, :, head])
            plgpu.wait_smem_to_gmem(0)
            plgpu.barrier_arrive(released.at[buffer])
            return done + count

        def fetch(i, done):
            row, buffer = order[first + i * programs], lax.rem(i, jnp.int32(buffers))
            count, tile = counts[row], tiles[row]

            @pl.when(i >= buffers)
            def _():
                plgpu.barrier_wait(released.at[buffer])

            for name, ref in row_at.items():
                for half in range(GROUPS):
                    source = _find(per_row[name], tile, self.row_side, half)
                    plgpu.copy_gmem_to_smem(source, ref.at[buffer, half], loaded.at[buffer])

            @pl.loop(0, count)
            def _(j):
                slot, tile = lax.rem(done + j, jnp.int32(slots)), entries[row, j] & jnp.int32(FULL - 1)

                @pl.when(done + j >= slots)
                def _():
                    plgpu.barrier_wait(freed.at[slot])

                for name, ref in slot_at.items():
                    plgpu.copy_gmem_to_smem(
                        _find(per_visit[name], tile, self.visit_side), ref.at[slot], filled.at[slot]
                    )

            return done + count

        @pl.when(group < GROUPS)
        def _():
            plgpu.set_max_registers(232, action="increase")
            lax.fori_loop(0, mine, work, jnp.int32(0))

        @pl.when(group == GROUPS)
        def _():
            plgpu.set_max_registers(40, action="decrease")
            visits = lax.fori_loop(0, mine, fetch, jnp.int32(0))
            for left, barrier, places in ((visits, freed, slots), (mine, released, buffers)):

                @pl.loop(jnp.maximum(0, left - places), left)  # wait until all slots have been read
                def _(i, barrier=barrier, places=places):
                    plgpu.barrier_wait(barrier.at[lax.rem(i, jnp.int32(places))])

    def _emulate(self, lists: Lists, per_row, per_visit):
        """Do the arithmetic of the kernel without a GPU, and without its data movement."""
        batch, _, tiles = self.row_side

        def program(row):
            own = {name: _find(x, lists.tile[row], self.row_side) for name, x in per_row.items()}

            def half(group):
                part = {name: x[group * ROWS : (group + 1) * ROWS] for name, x in own.items()}

                def visit(j, state):
                    entry, tile = lists.entries[row, j], lists.entries[row, j] & (FULL - 1)
                    r = {name: _find(x, tile, self.visit_side) for name, x in per_visit.items()}
                    bias = None if lists.bias is None else lists.bias[row, j]
                    facts = SimpleNamespace(full=entry >= FULL, bias=bias, take_turns=lambda: None)
                    return self.step(self.settings, SimpleNamespace(**part, **r), facts, state)

                r = SimpleNamespace(
                    **part, **{name: _find(x, 0, self.visit_side) for name, x in per_visit.items()}
                )
                state = lax.fori_loop(0, lists.counts[row], visit, self.begin(self.settings, r))
                return self.end(self.settings, r, state)

            return jax.tree.map(lambda *x: jnp.concatenate(x), *map(half, range(GROUPS)))

        results = lax.map(program, jnp.arange(len(lists.order)))
        for name in self.narrow:
            x = results[name].astype(jnp.bfloat16)
            results[name] = jnp.moveaxis(x.reshape(batch, -1, tiles, *x.shape[1:]), 1, 3)
        return results


def _places(number, side: Side):
    """Return batch row, head and tile of a tile's number."""
    _, heads, tiles = side
    if isinstance(number, int):
        number = jnp.int32(number)
    row = lax.div(number, jnp.int32(tiles))
    return lax.div(row, jnp.int32(heads)), lax.rem(row, jnp.int32(heads)), lax.rem(number, jnp.int32(tiles))


def _find(x, number, side: Side, half: int | None = None):
    """Return a tile of an array or of a reference to one, or half of it where tiles are cut into halves."""
    source, halves = (
        getattr(x, "at", x) if not isinstance(x, jax.Array) else x,
        () if half is None else (half,),
    )
    rank = x.ndim - len(halves)
    if rank < 4:
        return source[(number, *halves)]
    batch, head, tile = _places(number, side)
    return source[(batch, tile, *halves, slice(None), head)] if rank == 5 else source[(batch, tile, *halves)]


def _halved(x):
    axis = 2 if x.ndim > 3 else 1  # C
    return x.reshape(*x.shape[:axis], GROUPS, ROWS, *x.shape[axis + 1 :])


def _processors() -> int:
    """Return the number of streaming multiprocessors of the GPU, or of the compilation target."""
    target = jax.sharding.get_abstract_mesh().abstract_device
    if target is not None and target.num_cores:
        return target.num_cores
    return getattr(jax.devices()[0], "core_count", 132)


def _bytes(shape, dtype) -> int:
    return math.prod(shape) * jnp.dtype(dtype).itemsize


def _shared(shape, dtype):
    """Allocate shared memory; bfloat16 matrices get the layout that tensor cores need."""
    if dtype != jnp.bfloat16:
        return plgpu.SMEM(shape, dtype)
    columns = min(64, shape[-1])
    transforms = (plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(2 * columns))
    return plgpu.SMEM(shape, dtype, transforms=transforms)
