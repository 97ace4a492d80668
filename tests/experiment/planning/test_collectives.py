"""What devices send each other equals what is counted by hand."""

from pasmr_jax.experiment.planning import hlo
from pasmr_jax.experiment.planning.collectives import (
  collectives,
  received_bytes,
)
from tests.experiment.planning.scheduled import PROGRAM, ROWS


def test_bytes_between_devices():
  module = hlo.parse(PROGRAM)
  gathered, scattered = 4 * 8 * 512 * 2 * 3 / 4, ROWS * 3 / 4
  assert received_bytes(collectives(module)) == {
    "all-gather": gathered,
    "reduce-scatter": scattered,
  }
  moved = received_bytes(collectives(module, dynamic_trips=2))
  assert moved["all-reduce"] == 2 * ROWS * 2 * 3 / 4  # out and back, over groups of four


def test_parts_of_an_asynchronous_collective_count_once():
  text = """\
HloModule m

ENTRY %main (x: bf16[2,128]) -> bf16[8,128] {
  %x = bf16[2,128]{1,0} parameter(0)
  %start = (bf16[2,128]{1,0}, bf16[8,128]{1,0}) all-gather-start(%x), channel_id=3, \
replica_groups={{0,1,2,3}}, dimensions={0}
  %sent = bf16[2,128]{1,0} collective-permute(%x), channel_id=4, source_target_pairs={{0,1},{1,0}}
  ROOT %done = bf16[8,128]{1,0} all-gather-done(%start)
}
"""
  moved = received_bytes(collectives(hlo.parse(text)))
  assert moved == {"all-gather": 8 * 128 * 2 * 3 / 4, "collective-permute": 2 * 128 * 2}


def test_what_hosts_exchange_between_slices_has_a_kind_of_its_own():
  text = """\
HloModule m

ENTRY %main (x: f32[100]) -> f32[100] {
  %x = f32[100]{0} parameter(0)
  %in = f32[100]{0} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%sum
  %go = token[] after-all()
  %sent = (f32[100]{0}, u32[], token[]) send(%in, %go), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %come = (f32[100]{0}, u32[], token[]) recv(%go), channel_id=3, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %other = (f32[100]{0}, u32[], token[]) recv(%go), channel_id=4, is_host_transfer=true
  ROOT %got = (f32[100]{0}, token[]) recv-done(%come), channel_id=3
}
"""
  moved = received_bytes(collectives(hlo.parse(text)))
  assert moved == {"all-reduce": 400 * 2 * 3 / 4, "from other slices": 400}
