"""Operations and bytes that are counted equal those counted by hand."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from pasmr_jax.experiment.planning import cost, hlo
from pasmr_jax.experiment.planning.collectives import NETWORK
from pasmr_jax.experiment.planning.cost import CHIPS, Cost
from pasmr_jax.parallel.mesh import make_mesh
from tests.experiment.planning.scheduled import LAYER, PROGRAM, ROWS


def flops(function, *arguments, trips=0):
  return cost.flops(jax.jit(function).trace(*arguments).jaxpr, trips)


def test_a_product_counts_two_operations_for_each_multiplication():
  assert flops(jnp.matmul, jnp.ones((3, 4)), jnp.ones((4, 5))) == 2 * 3 * 4 * 5
  batched = lambda a, b: jnp.einsum("bij,bjk->bik", a, b)  # noqa: E731
  assert flops(batched, jnp.ones((7, 3, 4)), jnp.ones((7, 4, 5))) == 7 * 2 * 3 * 4 * 5


def test_loops_count_their_trips_and_branches_the_cheapest():
  square = jnp.ones((4, 4))

  def scanned(x):
    return jax.lax.scan(lambda c, _: (jax.jit(jnp.matmul)(c, x), None), x, None, length=6)[0]

  def stopping(x):
    return jax.lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c @ x, x) @ x

  def chosen(x):
    return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

  assert flops(scanned, square) == 6 * 128
  assert flops(stopping, square) == 128
  assert flops(stopping, square, trips=5) == 6 * 128
  assert flops(chosen, square) == 128


def test_what_is_recomputed_counts_again():
  loss = lambda x, w: jnp.sum(jnp.tanh(x @ w) ** 2)  # noqa: E731
  shapes = jnp.ones((3, 4)), jnp.ones((4, 5))
  assert flops(jax.grad(loss, argnums=(0, 1)), *shapes) == 3 * 120
  assert flops(jax.grad(jax.checkpoint(loss), argnums=(0, 1)), *shapes) == 4 * 120


def test_mapped_shards_count_on_every_device():
  mesh = make_mesh(-1, 2)
  parts = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(P("fsdp"), P()), out_specs=P("fsdp"))
  # Four shards of the rows, each worked on by two devices.
  assert flops(parts, jnp.ones((8, 4)), jnp.ones((4, 5))) == 2 * 2 * 8 * 4 * 5


def test_bytes_through_hbm():
  module = hlo.parse(PROGRAM)
  # Each trip slices one layer out of the stack into VMEM and writes one back. The gather stays in
  # VMEM. Outside: a copy of x to VMEM reads it, and the scatter writes a quarter of it.
  outside = 4 * (LAYER + LAYER) + ROWS + ROWS // 4
  assert cost.hbm_bytes(module) == outside
  # A trip of the loop that may stop early reads and writes x.
  assert cost.hbm_bytes(module, dynamic_trips=10) == outside + 10 * 2 * ROWS


def test_what_a_condition_decides_counts_where_it_is_part_of_a_step():
  module = hlo.parse("""\
HloModule m

%moved (old: f32[8,128]) -> f32[8,128] {
  %old = f32[8,128]{1,0} parameter(0)
  ROOT %new = f32[8,128]{1,0} negate(%old)
}

%kept (same: f32[8,128]) -> f32[8,128] {
  ROOT %same = f32[8,128]{1,0} parameter(0)
}

ENTRY %main (sound: pred[], x: f32[8,128]) -> f32[8,128] {
  %sound = pred[] parameter(0)
  %x = f32[8,128]{1,0} parameter(1)
  ROOT %out = f32[8,128]{1,0} conditional(%sound, %x, %x), true_computation=%moved, \
false_computation=%kept
}
""")
  assert cost.hbm_bytes(module) == 0
  assert cost.hbm_bytes(module, branches=True) == 2 * 8 * 128 * 4
  square = jnp.ones((4, 4))
  traced = jax.jit(lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: x)).trace(square)
  assert cost.flops(traced.jaxpr) == 0
  assert cost.flops(traced.jaxpr, branches=True) == 2 * 4**3


def test_of_two_branches_that_do_something_one_counts():
  module = hlo.parse("""\
HloModule m

%near (one: f32[8,128]) -> f32[8,128] {
  %one = f32[8,128]{1,0} parameter(0)
  ROOT %a = f32[8,128]{1,0} negate(%one)
}

%far (two: f32[8,128]) -> f32[8,128] {
  %two = f32[8,128]{1,0} parameter(0)
  %b = f32[8,128]{1,0} negate(%two)
  ROOT %c = f32[8,128]{1,0} negate(%b)
}

ENTRY %main (local: pred[], x: f32[8,128]) -> f32[8,128] {
  %local = pred[] parameter(0)
  %x = f32[8,128]{1,0} parameter(1)
  ROOT %out = f32[8,128]{1,0} conditional(%local, %x, %x), true_computation=%near, \
false_computation=%far
}
""")
  assert cost.hbm_bytes(module, branches=True) == 4 * 8 * 128 * 4
  assert cost.hbm_bytes(module) == 0


def test_blocks_that_a_kernel_may_skip_are_no_part_of_a_floor():
  def kernel(x, w, out):
    out[...] = x[...] @ w[...]

    @pl.when(pl.program_id(0) > 1)
    def _():
      out[...] += x[...] @ w[...]

  call = pl.pallas_call(kernel, jax.ShapeDtypeStruct((8, 8), jnp.float32), grid=(4,))
  traced = jax.jit(call).trace(jnp.ones((8, 8)), jnp.ones((8, 8)))
  for branches in (False, True):
    assert cost.flops(traced.jaxpr, branches=branches) == 4 * 2 * 8**3


def test_the_floor_is_what_takes_longest():
  spent = Cost(flops=197e12, hbm_bytes=2 * 819e9, collective_bytes={"all-gather": 100e9})
  seconds, bound = cost.floor(spent, CHIPS["v5e"])
  assert seconds == {"compute": 1.0, "memory": 2.0, "interconnect": 0.5, "network": 0.0}
  assert bound == "memory"
  across = Cost(flops=0, hbm_bytes=0, collective_bytes={"all-gather": 50e9, NETWORK: 6.25e9})
  seconds, bound = cost.floor(across, CHIPS["v5e"])
  assert (seconds["interconnect"], seconds["network"], bound) == (0.25, 2.0, "network")
