"""Parsing of compiled programs: loops, split operations, groups of devices and slices, on small texts."""

import pytest

from localist_jax.parallel import hlo

LOOP = """HloModule step

%bound (p: (s32[], f32[8,4])) -> pred[] {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %limit = s32[] constant(5)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%all-reduce-scatter.1 (in: f32[8,4]) -> f32[2,4] {
  %in = f32[8,4]{1,0} parameter(0)
  %sum = f32[8,4]{1,0} all-reduce(%in), channel_id=3, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %mine = f32[2,4]{1,0} dynamic-slice(%sum, %in), dynamic_slice_sizes={2,4}
}

%sliced (stack: f32[10,8,4], at: s32[]) -> f32[8,4] {
  %stack = f32[10,8,4]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  ROOT %one = f32[8,4]{1,0} dynamic-slice(%stack, %at), dynamic_slice_sizes={1,8,4}
}

%body (q: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %q = (s32[], f32[8,4]{1,0}) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%q), index=1
  %all = f32[8,4]{1,0} all-gather(%x), channel_id=1, replica_groups={{0,2},{1,3}}, metadata={op_name="layer"}
  %again = f32[8,4]{1,0} all-gather(%x), channel_id=1, replica_groups={{0,2},{1,3}}, metadata={op_name="layer"}
  %part = f32[2,4]{1,0} fusion(%all), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %out = (s32[], f32[8,4]{1,0}) tuple(%x, %all)
}

ENTRY %main (a: f32[10,8,4], b: s32[]) -> f32[8,4] {
  %a = f32[10,8,4]{2,1,0} parameter(0)
  %b = s32[] parameter(1)
  %first = f32[8,4]{1,0} fusion(%a, %b), kind=kLoop, calls=%sliced
  %start = (s32[], f32[8,4]{1,0}) tuple(%b, %first)
  %loop = (s32[], f32[8,4]{1,0}) while(%start), condition=%bound, body=%body
  ROOT %found = f32[8,4]{1,0} get-tuple-element(%loop), index=1
}
"""
SIZE = 8 * 4 * 4  # bytes of f32[8,4]


@pytest.fixture(scope="module")
def program():
    return hlo.read(LOOP)


def test_collectives_count_as_often_as_their_loop_runs_and_once_by_channel(program):
    found = {one.kind: one for one in program.collectives}
    assert set(found) == {"all-gather", "reduce-scatter"}
    gather, scatter = found["all-gather"], found["reduce-scatter"]
    assert (gather.times, gather.bytes, gather.group, gather.ids, gather.where) == (
        5,
        SIZE,
        2,
        (0, 2),
        "layer",
    )
    assert gather.wire == 5 * SIZE / 2
    assert (scatter.times, scatter.bytes, scatter.group) == (5, SIZE, 4)  # from the fusion that contains it
    assert scatter.wire == 5 * SIZE * 3 / 4


def test_a_slice_of_a_stack_counts_as_a_slice(program):
    entry = 2 * SIZE + 4  # a layer's slice is read and written; its index is read
    body = 5 * (SIZE + SIZE / 4)  # the fusion reads the gathered array and writes its part
    assert program.memory_bytes == entry + body


@pytest.mark.parametrize(
    ("attributes", "ids"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}", (0, 1, 2)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", (0, 2, 4, 6)),
        ("source_target_pairs={{0,3},{3,0}}", (0, 3)),
        ("replica_groups={}", ()),
    ],
)
def test_groups_of_devices(attributes, ids):
    found, size = hlo._group(f"channel_id=1, {attributes}, dimensions={{0}}")
    assert found == ids
    assert size == max(1, len(ids))


@pytest.mark.parametrize(
    ("kind", "everywhere", "size"),
    [
        ("f32[2,3]{1,0}", True, 24),
        ("(bf16[4]{0:T(8,128)(2,1)S(1)}, s32[])", True, 12),
        ("(bf16[4]{0:T(8,128)(2,1)S(1)}, s32[])", False, 4),  # arrays on the chip are not in main memory
        ("token[]", True, 0),
    ],
)
def test_sizes_of_types(kind, everywhere, size):
    assert hlo.size_of(kind, everywhere) == size
