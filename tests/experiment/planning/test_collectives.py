"""What devices send each other equals what is counted by hand."""

import pytest

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


REDUCED = """\
HloModule m

ENTRY %main (x: f32[100]) -> f32[100] {{
  %x = f32[100]{{0}} parameter(0)
  ROOT %y = f32[100]{{0}} all-reduce(%x), channel_id=1, replica_groups={groups}, to_apply=%sum
}}
"""


@pytest.mark.parametrize(
  ("groups", "devices"),
  [
    ("{{0,1},{2,3}}", 2),
    ("[4,2]<=[2,4]T(1,0)", 2),
    ("mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", 4),
    ("mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_0'}", 2),
    ("mesh['axis_0'=2,'axis_1'=4], device_ids=([8]) {'axis_0','axis_1'}", 8),
  ],
)
def test_groups_of_devices_are_read_in_each_form(groups, devices):
  moved = received_bytes(collectives(hlo.parse(REDUCED.format(groups=groups))))
  assert moved == {"all-reduce": 2 * 400 * (devices - 1) / devices}


def test_groups_of_an_unknown_form_are_an_error():
  for groups in ("{}", "mesh['axis_0'=4] {'axis_0':(1)2}", "everyone"):
    with pytest.raises(ValueError, match="replica_groups"):
      collectives(hlo.parse(REDUCED.format(groups=groups)))
