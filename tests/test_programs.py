"""What `benchmarks.programs` compiles, for CPU devices in place of a target's."""

import types

import flax.linen as nn
import jax
import pytest

from benchmarks import live_teacher, program_peers, programs
from benchmarks.cases import Case
from deit_jax import targets
from deit_jax.errors import InputError
from deit_jax.models import cost, variants

CASE = Case("deit_nano_distilled_patch8_32", 4, 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "passes"), [("train", 3), ("evaluate", 1), ("augment", 0)]
)
def test_a_program_has_the_images_of_its_case_on_each_device(program, passes):
    devices = jax.local_devices()[:2]
    lowered, flops = programs.lower(program, CASE, devices)
    model = variants.create(CASE.variant, num_classes=10)
    assert flops == passes * 4 * cost.forward_flops(model)
    shapes = {x.shape for x in jax.tree.leaves(lowered.in_avals)}
    assert (2, 4, 32, 32, 3) in shapes


@pytest.mark.parametrize("peer", program_peers.MODULES)
def test_a_peer_that_is_not_there_is_named_with_where_to_get_it(peer):
    with pytest.raises(InputError, match=f"Clone https://.*/{peer}, put the clone on"):
        program_peers.lower(peer, CASE, jax.local_devices()[:1])


class Peer(nn.Module):
    """In place of a peer's model: a pooled linear layer of its arguments."""

    settings: dict

    @nn.compact
    def __call__(self, images, train):
        logits = nn.Dense(self.settings["num_classes"])(images.mean((1, 2)))
        return (logits, {}) if "dtype_mm" in self.settings else logits


@pytest.mark.parametrize("peer", program_peers.MODULES)
def test_a_peers_step_sums_its_gradient_over_the_devices(peer, monkeypatch):
    def made(**settings):
        return Peer(settings | {"patches": None})

    module = types.SimpleNamespace(Model=made, VisionTransformer=made)
    monkeypatch.setattr(program_peers.importlib, "import_module", lambda _: module)
    lowered, flops = program_peers.lower(peer, CASE, jax.local_devices()[:2])
    plain = variants.create("deit_nano_patch8_32", num_classes=10)
    assert flops == 3 * 4 * cost.forward_flops(plain)
    program = targets.compile_program(lowered)
    assert program.collectives["all-reduce"][1] >= 4 * (3 * 10 + 10)


@pytest.mark.parametrize("benchmark", [programs, live_teacher])
def test_an_unknown_target_is_refused_by_name(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--targets=v5e,foo"])
    assert "--target=foo: expected one of h100, a100" in capsys.readouterr().err
