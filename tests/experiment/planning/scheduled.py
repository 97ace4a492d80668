"""The schedule of a small program: two loops, three collectives."""

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a, %b)
}

%take_layer (p0: bf16[4,8,128], p1: s32[]) -> bf16[8,128] {
  %p0 = bf16[4,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = s32[]{:T(128)S(6)} parameter(1)
  %slice.1 = bf16[1,8,128]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,8,128}
  ROOT %flat = bf16[8,128]{1,0:T(8,128)(2,1)} bitcast(%slice.1)
}

%put_layer (q0: bf16[4,8,128], q1: bf16[1,8,128], q2: s32[]) -> bf16[4,8,128] {
  %q0 = bf16[4,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %q1 = bf16[1,8,128]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %q2 = s32[]{:T(128)S(6)} parameter(2)
  ROOT %put = bf16[4,8,128]{2,1,0:T(8,128)(2,1)} dynamic-update-slice(%q0, %q1, %q2)
}

%body (c: (s32[], bf16[4,8,128])) -> (s32[], bf16[4,8,128]) {
  %c = (s32[]{:T(128)S(6)}, bf16[4,8,128]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%c), index=0
  %stack = bf16[4,8,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%c), index=1
  %layer = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} fusion(%stack, %i), kind=kLoop, calls=%take_layer
  %gathered = bf16[1,8,512]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%layer), channel_id=1, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={2}
  %new = bf16[1,8,128]{2,1,0:T(8,128)(2,1)S(1)} bitcast(%layer)
  %next = bf16[4,8,128]{2,1,0:T(8,128)(2,1)} fusion(%stack, %new, %i), kind=kLoop, calls=%put_layer
  ROOT %out = (s32[]{:T(128)S(6)}, bf16[4,8,128]{2,1,0:T(8,128)(2,1)}) tuple(%i, %next)
}

%four (c2: (s32[], bf16[4,8,128])) -> pred[] {
  %c2 = (s32[]{:T(128)S(6)}, bf16[4,8,128]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %four.1 = s32[]{:T(128)S(6)} constant(4)
  %i.2 = s32[]{:T(128)S(6)} get-tuple-element(%c2), index=0
  ROOT %lt = pred[]{:T(512)S(6)} compare(%i.2, %four.1), direction=LT
}

%stepping (d: (s32[], f32[16,128])) -> (s32[], f32[16,128]) {
  %d = (s32[]{:T(128)S(6)}, f32[16,128]{1,0:T(8,128)}) parameter(0)
  %j = s32[]{:T(128)S(6)} get-tuple-element(%d), index=0
  %row = f32[16,128]{1,0:T(8,128)} get-tuple-element(%d), index=1
  %reduced = f32[16,128]{1,0:T(8,128)} all-reduce(%row), channel_id=7, \
replica_groups=[2,4]<=[8], to_apply=%sum
  ROOT %out.2 = (s32[]{:T(128)S(6)}, f32[16,128]{1,0:T(8,128)}) tuple(%j, %reduced)
}

%until_done (e: (s32[], f32[16,128])) -> pred[] {
  %e = (s32[]{:T(128)S(6)}, f32[16,128]{1,0:T(8,128)}) parameter(0)
  %hundred = s32[]{:T(128)S(6)} constant(100)
  %k = s32[]{:T(128)S(6)} get-tuple-element(%e), index=0
  %lt.2 = pred[]{:T(512)S(6)} compare(%k, %hundred), direction=LT
  %alive = pred[]{:T(512)S(6)} constant(true)
  ROOT %and = pred[]{:T(512)S(6)} and(%lt.2, %alive)
}

ENTRY %main (w: bf16[4,8,128], x: f32[16,128]) -> f32[4,128] {
  %w = bf16[4,8,128]{2,1,0:T(8,128)(2,1)} parameter(0), sharding={devices=[1,1,4]<=[4]}
  %x = f32[16,128]{1,0:T(8,128)} parameter(1)
  %zero = s32[]{:T(128)S(6)} constant(0)
  %start = (s32[]{:T(128)S(6)}, bf16[4,8,128]{2,1,0:T(8,128)(2,1)}) tuple(%zero, %w)
  %loop = (s32[]{:T(128)S(6)}, bf16[4,8,128]{2,1,0:T(8,128)(2,1)}) while(%start), condition=%four, body=%body
  %copied = (f32[16,128]{1,0:T(8,128)S(1)}, f32[16,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %there = f32[16,128]{1,0:T(8,128)S(1)} copy-done(%copied)
  %begin = (s32[]{:T(128)S(6)}, f32[16,128]{1,0:T(8,128)}) tuple(%zero, %x)
  %decoded = (s32[]{:T(128)S(6)}, f32[16,128]{1,0:T(8,128)}) while(%begin), condition=%until_done, body=%stepping
  ROOT %scattered = f32[4,128]{1,0:T(8,128)} reduce-scatter(%there), channel_id=9, \
replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, to_apply=%sum
}
"""  # noqa: E501
LAYER = 8 * 128 * 2
ROWS = 16 * 128 * 4
