"""What is read from compiled programs, and what is known of machines not there."""

import shlex
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from deit_jax import targets
from deit_jax.errors import InputError

OTHERS = """
%inner (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %n = f32[8]{0} negate(%p)
}

%other (q: f32[8]) -> f32[8] {
  %q = f32[8]{0} parameter(0)
  ROOT %e = f32[8]{0} exponential(%q)
}

%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[8]{0} get-tuple-element(%t), index=1
  %y = f32[8]{0} add(%x, %x)
  ROOT %r = (s32[], f32[8]{0}) tuple(%i, %y)
}

ENTRY %main (a: f32[8], b: bf16[4,4]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %b = bf16[4,4]{1,0} parameter(1)
"""
WHILE = "  %w = (s32[], f32[8]{0}) while(%a), condition=%inner, body=%body"
PROGRAMS = {
    "a fusion reads and writes once, whatever is in it": (
        "  ROOT %f = f32[8]{0} fusion(%a), kind=kLoop, calls=%inner, "
        'metadata={op_name="step/blocks_11/neg"}',
        {("fusion", "step/blocks/neg"): 64},
    ),
    "a loop counts as often as it runs": (
        WHILE + ', backend_config={"known_trip_count":{"n":"5"}}',
        {("add", ""): 5 * 96},
    ),
    "a loop of unknown length counts once": (WHILE, {("add", ""): 96}),
    "branches by index count as if taken": (
        "  %c = f32[8]{0} conditional(%i, %a, %a), "
        "branch_computations={%inner, %other}",
        {("negate", ""): 64, ("exponential", ""): 64},
    ),
    "branches by a predicate too": (
        "  %c = f32[8]{0} conditional(%i, %a, %a), true_computation=%inner, "
        "false_computation=%other",
        {("negate", ""): 64, ("exponential", ""): 64},
    ),
    "a call is what it calls": (
        "  %c = f32[8]{0} call(%a), to_apply=%inner",
        {("negate", ""): 64},
    ),
    "the workspace of a product does not count": (
        "  %g = (bf16[4,4]{1,0}, s8[4096]{0}) custom-call(%b, %b), "
        'custom_call_target="__cublas$gemm"',
        {("custom-call", ""): 3 * 32},
    ),
    "nor what moves nothing": (
        "  %g = f32[2,4]{1,0} bitcast(%a)\n  ROOT %t = (f32[2,4]{1,0}) tuple(%g)",
        {},
    ),
    "types are written with tiles for TPUs": (
        "  %s = (f32[8]{0:T(256)S(1)}, /*index=1*/pred[]) sort(%a, %b), dimensions={0}",
        {("sort", ""): 33 + 64},
    ),
}


@pytest.mark.parametrize(("lines", "moved"), PROGRAMS.values(), ids=PROGRAMS)
def test_traffic_counts_operands_and_results(lines, moved):
    assert targets.traffic(f"HloModule m\n{OTHERS}{lines}\n}}\n") == moved


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("pred[]", 1),
        ("bf16[128,3]{1,0:T(8,128)(2,1)}", 768),
        ("(f32[8,3]{1,0}, (u8[5]{0}, s64[]))", 96 + 5 + 8),
        ("(f32[0]{0}, token[])", 0),
    ],
)
def test_sizes_of_types(kind, size):
    assert targets.size(kind) == size


def test_collectives_are_counted_with_their_bytes():
    """Two sums in one, and a gather; in HLO as XLA writes it, comments included."""
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("x",))

    def several(a, b, c):
        return jax.lax.psum((a, b), "x"), jax.lax.all_gather(c, "x", tiled=True)

    mapped = jax.shard_map(
        several,
        mesh=mesh,
        in_specs=(P("x"), P("x"), P("x")),
        out_specs=(P(), P()),
        check_vma=False,
    )
    arguments = jnp.ones((4, 3)), jnp.ones((4, 5, 2)), jnp.ones((8,), jnp.bfloat16)
    found = targets.compile_program(jax.jit(mapped).lower(*arguments)).collectives
    assert found["all-reduce"][1] == 4 * (3 + 10)
    # On a CPU bfloat16 is gathered as such, or as the float32 that it becomes.
    assert found["all-gather"] in ([1, 16], [1, 32])
    long = " = (f32[2]{0}, f32[3]{0}, /*index=5*/bf16[4,2]{1,0}) all-reduce-start(%a)"
    assert targets.collectives(long) == {"all-reduce": [1, 36]}
    assert targets.collectives("%f = f32[2]{0} fusion(%all-reduce.1)") == {}


def test_a_compiled_program_is_read():
    def powers(a, b, length):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ b), None), a, None, length)[0]

    shapes = jax.ShapeDtypeStruct((64, 32), jnp.float32), jnp.ones((32, 32))
    three, six = (
        targets.compile_program(jax.jit(powers, static_argnums=2).lower(*shapes, n))
        for n in (3, 6)
    )
    arguments, result = 4 * (64 * 32 + 32 * 32), 4 * 64 * 32
    assert three.memory - three.temporaries == arguments + result
    once = (sum(six.moved.values()) - sum(three.moved.values())) / 3
    assert arguments + result <= once <= 4 * (arguments + result)
    assert three.bytes == three.xla_bytes > 0
    assert three.collectives == {}


def test_the_roofline_is_the_slower_of_products_and_memory():
    program = targets.Program({("fusion", ""): 10**9}, None, 0, 0, {}, 0.0)
    chip = targets.Target("", flops=1e12, bandwidth=1e9, memory=1e9)
    assert program.roofline(chip, 1e11) == 1.0
    assert program.roofline(chip, 4e12) == 4.0


OUT = {
    "a TPU's temporaries": (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for "
        "HLO temporaries (108.50G) exceeds available HBM (15.75G).",
        108.5 * 2**30,
    ),
    "a TPU's allocations": (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.00M of "
        "15.75M hbm.",
        2**29,
    ),
    "a GPU's": (
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4096 bytes.",
        4096,
    ),
    "no size": ("RESOURCE_EXHAUSTED: Out of memory", float("inf")),
}


def failing(message):
    error = jax.errors.JaxRuntimeError(message)
    return types.SimpleNamespace(compile=mock.Mock(side_effect=error))


@pytest.mark.parametrize(("message", "memory"), OUT.values(), ids=OUT)
def test_a_program_without_memory_says_how_much_it_needs(message, memory):
    with pytest.raises(targets.OutOfMemory) as refused:
        targets.compile_program(failing(message))
    assert refused.value.memory == memory


def test_a_fault_of_xla_stays_one():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        targets.compile_program(failing("INTERNAL: a fault of XLA"))


def test_targets_are_named_with_their_chips():
    assert targets.parse("v5e") == ("v5e", 1)
    assert targets.parse("h100:8") == ("h100", 8)


@pytest.mark.parametrize("text", ["", "h1000", "V5E", "v5e:3", "v5e:x", "v5e:4:4"])
def test_other_targets_are_refused_with_a_list(text):
    with pytest.raises(InputError, match=f"--target={text}: expected one of h100, a10"):
        targets.parse(text)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_target_is_complete(name, monkeypatch):
    target = targets.TARGETS[name]
    assert min(target.flops, target.bandwidth, target.memory) > 0
    assert bool(target.gpu) != all(target.topology)
    monkeypatch.setattr(targets, "_found", lambda module: False)
    with pytest.raises(InputError) as refused:
        targets.devices(name)
    requirements, _ = targets.packages(name)
    assert f"--target=DIR {shlex.join(requirements)}\n" in str(refused.value)
    assert all("==" in r for r in requirements if r != "nvidia-cuda-nvcc")
