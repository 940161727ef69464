"""Reading a scheduled module.

A small text with a loop, a collective spread over fusions, a kernel that breaks lines, and what must be found.
"""

import pytest

from dreamjax.compile_tpu import checks, estimate, hlo, topology

ASYNC = """
%piece.1 (p: bf16[1024,4096]) -> bf16[4096,4096] {
  %p = bf16[1024,4096]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[4096,4096]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['axis_0'=4,'axis_1'=1] {'axis_0'}, dimensions={0}
}

%product (a: bf16[8192,4096], p: bf16[1024,4096]) -> bf16[8192,4096] {
  %a = bf16[8192,4096]{1,0} parameter(0)
  %p.1 = bf16[1024,4096]{1,0} parameter(1)
  %all-gather.2 = bf16[4096,4096]{1,0} all-gather(%p.1), channel_id=7, replica_groups=mesh['axis_0'=4,'axis_1'=1] {'axis_0'}, dimensions={0}
  ROOT %convolution.1 = bf16[8192,4096]{1,0} convolution(%a, %all-gather.2), dim_labels=bf_io->bf
}

%all-reduce-scatter.1 (g: bf16[4096,4096]) -> bf16[1024,4096] {
  %g = bf16[4096,4096]{1,0} parameter(0)
  ROOT %all-reduce.3 = bf16[4096,4096]{1,0} all-reduce(%g), channel_id=9, replica_groups=[1,4]<=[4], to_apply=%add, metadata={op_name="transpose(jvp())/layers"}
}

%body (t: (s32[], bf16[8192,4096])) -> (s32[], bf16[8192,4096]) {
  %t = (s32[], bf16[8192,4096]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = bf16[8192,4096]{1,0} get-tuple-element(%t), index=1
  %w = bf16[1024,4096]{1,0} constant({...})
  %async-collective-start = bf16[4096,4096]{1,0} fusion(%w), kind=kCustom, calls=%piece.1
  %fusion.2 = bf16[8192,4096]{1,0} fusion(%x, %w), kind=kOutput, calls=%product, backend_config={"estimated_cycles":"1050000"}
  %async-collective-done = bf16[4096,4096]{1,0} fusion(%w), kind=kCustom, calls=%piece.1
  %q = bf16[4,32,2048,128]{3,2,1,0} bitcast(%fusion.2)
  %splash_mha_fwd_segmented.1 = (f32[2,512,128]{2,1,0}, bf16[4,32,2048,128]{3,2,1,0}) custom-call(%i, %q, %q, %q), custom_call_target="tpu_custom_call", metadata={
 "xprof_metadata":"{\\"block_q\\": 512}
}}, backend_config={}
  %fusion.3 = bf16[1024,4096]{1,0} fusion(%fusion.2), kind=kCustom, calls=%all-reduce-scatter.1, backend_config={"estimated_cycles":"0"}
  ROOT %r = (s32[], bf16[8192,4096]{1,0}) tuple(%i, %fusion.2)
}

%condition (t.1: (s32[], bf16[8192,4096])) -> pred[] {
  %limit = s32[] constant(32)
  %t.1 = (s32[], bf16[8192,4096]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%t.1), index=0
  ROOT %lt = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (p0: (s32[], bf16[8192,4096])) -> (s32[], bf16[8192,4096]) {
  %p0 = (s32[], bf16[8192,4096]{1,0}) parameter(0)
  ROOT %while.1 = (s32[], bf16[8192,4096]{1,0}) while(%p0), condition=%condition, body=%body
}
"""
SLICE = topology.parse("v4:2x2x1")
PLACES = [(0, x, y, 0) for x in range(2) for y in range(2)]
WALK = estimate.Walk(hlo.parse(ASYNC), SLICE, PLACES)


def test_loops_turn_as_often_as_their_condition_says():
    loop = WALK.module.computations["main"][-1]
    assert loop.root and hlo.trip_count(WALK.module, loop) == 32
    assert WALK.cost("main").flops == 32 * WALK.cost("body").flops


def test_flops_by_hand():
    product, kernel = (
        2 * 8192 * 4096 * 4096,
        2 * 2 * 4 * 32 * 2048 * 2048 * 128 * (4 + 1) / 8,
    )  # of 4 x 4 blocks 10 are not above the diagonal
    assert WALK.cost("body").flops == product + kernel


def test_a_gather_spread_over_fusions_is_one():
    assert WALK.cost("body").collectives == {
        ("all-gather", True): [1, 2 * 4096 * 4096],
        ("reduce-scatter", False): [1, 2 * 4096 * 4096],
    }


def test_seconds_by_hand():
    cost, moved = WALK.cost("body"), 0.75 * 2 * 4096 * 4096 / (2 * 45e9)  # two axes of two chips, not closed
    kernel = 2 * 2 * 4 * 32 * 2048 * 2048 * 128 * 5 / 8 / (0.5 * 275e12)
    assert cost.network == pytest.approx(2 * moved)
    assert cost.seconds == pytest.approx(max(1.05e6 / 1.05e9, moved) + kernel + moved)
    assert cost.waiting == pytest.approx(moved) and cost.kernels == pytest.approx(kernel)


BETWEEN = """
ENTRY %main (p0: bf16[1024,4096]) -> bf16[1024,4096] {
  %p0 = bf16[1024,4096]{1,0} parameter(0)
  %after-all = token[] after-all(), frontend_attributes={MegascaleRendezvousKeyName="all-reduce.1_0"}
  %send = (bf16[1024,4096]{1,0}, u32[], token[]) send(%p0, %after-all), channel_id=2, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (bf16[1024,4096]{1,0}, u32[], token[]) recv(%after-all), channel_id=1, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %fusion.1 = bf16[1024,4096]{1,0} fusion(%p0), kind=kLoop, calls=%twice, backend_config={"estimated_cycles":"1050000"}
  %all-reduce = bf16[1024,4096]{1,0} all-reduce(%fusion.1), channel_id=3, replica_groups={{0,1},{2,3}}, to_apply=%add
  %send-done = token[] send-done(%send), channel_id=2
  ROOT %recv-done = (bf16[1024,4096]{1,0}, token[]) recv-done(%recv), channel_id=1
}
"""


def test_between_slices_hosts_send_while_the_links_within_are_free():
    walk = estimate.Walk(
        hlo.parse(BETWEEN), topology.parse("v4:2x1x1", 2), [(slice_, x, 0, 0) for slice_ in range(2) for x in range(2)]
    )
    cost, size = walk.cost("main"), 2 * 1024 * 4096
    within, between = size / 45e9, size / (topology.DCN_GBYTES * 1e9)  # an all-reduce of two moves its size once
    assert cost.collectives == {("all-reduce", True): [1, size], ("all-reduce", False): [1, size]}
    assert cost.network == pytest.approx(within + between)
    assert cost.seconds == pytest.approx(max(1e-3 + within, between)) and between > 1e-3 + within


@pytest.mark.parametrize(
    "text, group",
    [
        ("replica_groups={{0,2},{1,3}}, x", (0, 2)),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", (0, 2)),
        ("replica_groups=[2,2]<=[4]", (0, 1)),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", (0, 1)),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", (0, 2)),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}, x", (0, 1)),
        ("replica_groups={}, x", (0, 1, 2, 3)),
        ("to_apply=%add", (0, 1, 2, 3)),
    ],
)
def test_groups_in_all_notations(text, group):
    assert hlo.first_group(text, 4) == group


def test_groups_in_a_notation_that_is_not_known():
    with pytest.raises(ValueError, match="replica groups in a notation that is not known: replica_groups=torus"):
        hlo.first_group("replica_groups=torus[2,2]", 4)


def test_products_written_as_convolutions_count_what_meets_the_input():
    text = (
        "%c = f32[2,10,32,4]{3,2,1,0} convolution(%a, %b), window={size=1x32 pad=0_0x31_31 "
        "rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f"
    )
    line = hlo.parse(f"ENTRY %m () -> f32[] {{\n  {text}\n}}").computations["m"][0]
    types = {"a": (("f32", (2, 10, 8, 1)),), "b": (("f32", (32, 4, 8, 1)),)}
    assert hlo.matmul_flops(line, types) == 2 * (2 * 1) * 32 * 10 * 4 * 8


def test_checks_find_what_they_are_for():
    import jax
    import jax.numpy as jnp

    trainable = {
        "llm": {"layers": {"attention": {"q": {"kernel": jax.ShapeDtypeStruct((32, 4096, 4096), jnp.float32)}}}}
    }

    def run(text):
        return checks.run(
            hlo.parse(text),
            trainable,
            {"unet": {"conv": {"kernel": jax.ShapeDtypeStruct((4096, 4096), jnp.float32)}}},
            {"unet"},
            4,
            1,
        )

    assert not any(run(ASYNC).values())
    whole = ASYNC.replace("%all-reduce-scatter.1", "%reduction.1")
    assert "full-size all-reduces of gradients" in run(whole)["full_size_gradient_all_reduces"][0]
    pair = (
        "%all-reduce.8 = (bf16[4096,4096]{1,0}, bf16[11008,128]{1,0}) all-reduce(%x, %w), channel_id=11, "
        'metadata={op_name="transpose(jvp())/layers"}'
    )
    combined = ASYNC.replace("  ROOT %r =", f"  {pair}\n  ROOT %r =")
    assert run(combined)["full_size_gradient_all_reduces"][0].startswith("1 full-size all-reduces")
    assert "windowed-einsum" in run(ASYNC.replace("%body", "%windowed_dot_general_body"))["windowed_einsum_loops"][0]
    larger = ASYNC.replace("bf16[4096,4096]{1,0} all-gather(%p)", "bf16[4096,32768]{1,0} all-gather(%p)")
    assert "gathers of activations, as of 0.25 GiB" in run(larger)["gathers_of_activations"][0]
    gather = ASYNC.replace("dimensions={0}\n}", 'dimensions={0}, metadata={op_name="jvp(UNet)/conv"}\n}')
    assert "gathers of unet weights" in run(gather)["gathers_of_frozen_weights"][0]
    embedding = {"embed": {"embedding": jax.ShapeDtypeStruct((4096, 8192), jnp.float32)}}
    sunk = ASYNC.replace("bf16[4096,4096]{1,0} all-gather(%p.1)", "bf16[4096,8192]{1,0} all-gather(%p.1)").replace(
        "channel_id=7, replica", "channel_id=8, replica", 1
    )

    def find(text):
        return checks.run(hlo.parse(text), trainable | embedding, {}, set(), 4, 1)["gathers_in_layer_scans"]

    assert "of weights outside the layers" in find(sunk)[0]
    assert not find(sunk.replace("constant(32)", "constant(4)"))  # a loop over parts of a batch may gather once a turn
