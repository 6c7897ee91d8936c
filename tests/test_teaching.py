"""A live teacher against a cache of its answers, and what it must not change."""

import sys

import caches
import jax
import numpy as np
import pytest
import run_directories
import same_run
import small_models
from steps import stopped_after

from configs import deit
from deit_jax import dry_run, experiment, targets, teaching
from deit_jax.distillation import match
from deit_jax.errors import InputError
from deit_jax.models import cost
from deit_jax.models.params import count_parameters
from deit_jax.train import train_and_evaluate
from deit_jax.training import step, writers
from deit_jax.weights import tensor_files, timm

pytestmark = pytest.mark.usefixtures("small_nano")

SPLIT, STEPS, VIEWS = "train[:128]", 20, 5
OTHER = tuple("abcdefghij")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Untrained, of 24 px: two, and two of other classes; as files of weights too."""
    directory = tmp_path_factory.mktemp("teachers")
    for name, changes in {
        "one": {},
        "two": {"seed": 1, "variant": "vit_nano_patch8_32"},
        "other": {"class_names": OTHER},
        "three": {"class_names": OTHER[:3]},
    }.items():
        fields = {"image_size": 24} | changes
        _, params = run_directories.make(directory / name, **fields)
        tensors = timm.from_flax(params["raw"])
        tensor_files.write_safetensors(directory / f"{name}.safetensors", tensors)
    return directory


def make_config(teacher, /, **distillation):
    """A live run of 20 steps in 5 epochs, with all that moves the images."""
    config = deit.get_config("digits")
    config.dataset.train_split, config.dataset.eval_split = SPLIT, "test[:50]"
    config.epochs = STEPS / 4
    config.schedule.warmup_epochs = 0.0
    config.model.drop_path = 0.1
    config.augment.update(mixup=0.8, cutmix=1.0, erase_probability=0.25)
    config.optimizer.name, config.optimizer.learning_rate = "sgd", 0.05
    config.eval.every_epochs, config.log.every_steps = 0.0, 1
    config.checkpoint.every_steps = 4
    config.distillation.update(
        {
            "source": "live",
            "teacher": str(teacher),
            "allow_weak_teacher": True,
            "num_views": VIEWS,
        }
        | distillation
    )
    return config


def cached(config, directory):
    """`config` with a cache in `directory` of what its live teacher says."""
    run = experiment.create(config, devices=jax.devices()[:1])
    mixing = "linear" if run.settings["inputs"].keywords["unmixed"] else "exact"
    seen = match.seen_by_teacher(run.student, mixing)
    ask = jax.jit(run.live.ask)
    caches.write_views(
        directory,
        run.train_source,
        seen,
        VIEWS,
        lambda images: jax.device_get(ask(run.live.params, images)),
        precision=run.live.members[0].dtype,
    )
    other = config.copy_and_resolve_references()
    other.distillation.update(source="cache", logits_dir=str(directory))
    return other


def steps(config, devices):
    """The loss of each of the 20 steps, and how far student and teacher agree."""
    run = experiment.create(config, devices=jax.devices()[:devices])
    state = step.replicate(run.initial_state(), run.devices)
    train_step = run.train_step()
    rows = []
    with run.open_train_images() as images:
        resident = step.place_whole(run.resident_arrays(images.images), run.devices)
        stream = run.train_batches(images, 0, STEPS)
        for batch in step.on_devices(stream, run.devices):
            state, metrics = train_step(state, batch, resident)
            rows.append([float(metrics[name]) for name in ("loss", "teacher_kl")])
    return np.array(rows)


HOST, RESIDENT = {"augment.place": "host"}, {"dataset.on_device": True}
CASES = {
    "soft, exact, on 1": ("soft", "exact", 1, {}),
    "soft, linear, by the host, on 4": ("soft", "linear", 4, HOST),
    "hard, exact, by the host in parts, on 2": (
        "hard",
        "exact",
        2,
        HOST | {"optimizer.accumulation": 4},
    ),
    "cosine, exact, on 4": ("cosine", "exact", 4, RESIDENT),
    "features, exact, in parts, on 1": (
        "features",
        "exact",
        1,
        {"optimizer.accumulation": 2, "distillation.features.student": "mean"},
    ),
    "features, linear, on 2": ("features", "linear", 2, {}),
}
LARGEST = 4  # of |z| of the logits of these teachers, at least


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "mixing", "devices", "changes"), CASES.values(), ids=CASES
)
def test_a_live_teacher_gives_the_losses_of_its_cache(
    teachers, tmp_path, kind, mixing, devices, changes
):
    """Two teachers on several devices, whose answers are averaged.

    The cache rounds logits z to float16: by up to e = 2^-11 max |z|. That moves
    t^2 KL(teacher || student) by t e times the mean deviation of log(teacher / student)
    at temperature t, which is below 1 / t here; the cosine by less; and a decision not
    at all. The steps go on from parameters that are as near to each other.
    """
    several = f"{teachers / 'one'},{teachers / 'two'}"
    one = devices == 1 or kind == "features"
    config = make_config(teachers / "one" if one else several, kind=kind, mixing=mixing)
    config.update_from_flattened_dict(changes)
    live = steps(config, devices)
    from_cache = steps(cached(config, tmp_path / "cache"), devices)
    loss, kl = np.abs(live - from_cache).max(axis=0)
    print(f"{kind}, {mixing}: loss {loss:.2g}, KL {kl:.2g}")
    rounding = 2.0**-11 * LARGEST
    assert loss < (1e-6 if kind == "hard" else rounding)
    assert kl < rounding
    assert np.ptp(live[:, 0]) > 0.1


def is_torch(module):
    return module.split(".")[0] == "torch"


class NoTorch:
    """As if torch was not installed."""

    @staticmethod
    def find_spec(name, *_):
        if is_torch(name):
            raise ModuleNotFoundError(f"No module named {name!r}")


@pytest.mark.slow
def test_a_killed_run_resumes_with_its_teacher_alone(
    teachers, tmp_path, monkeypatch, capsys
):
    """To the same bits; and where torch is not installed, of a file as well."""
    for name in filter(is_torch, list(sys.modules)):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NoTorch, *sys.meta_path])
    file = teachers / "two.safetensors?arch=vit_nano_patch8_32"
    config = make_config(f"{teachers / 'one'}, {file}")
    config.epochs, config.steps_per_dispatch, config.log.every_steps = 2.0, 2, 4
    summary = train_and_evaluate(config, tmp_path / "whole")
    with stopped_after(3), pytest.raises(KeyboardInterrupt):
        train_and_evaluate(config, tmp_path / "parts")
    assert train_and_evaluate(config, tmp_path / "parts")["resumed_at_step"] == 4
    assert not same_run.differences(tmp_path / "whole", tmp_path / "parts")
    about = summary["teacher"]
    assert about["arch"] == "deit_nano_distilled_patch8_32 + vit_nano_patch8_32"
    assert (about["source"], about["top1_split"]) == ("live", "test[:50]")
    assert about["flops_per_image"] > about["bytes"] / 4
    out = capsys.readouterr().out
    assert "it sees the student's images in each step, mixed, soft" in out
    held = 4 * summary["parameters"] * 4  # and nothing of the teacher
    saved = jax.tree.leaves(same_run.final_state(tmp_path / "whole"))
    assert sum(np.asarray(x).nbytes for x in saved) < held

    config.distillation.teacher = str(teachers / "two")
    with pytest.raises(InputError, match=r"another live teacher: deit_nano.* -> vit_n"):
        train_and_evaluate(config, tmp_path / "whole")
    directory = tmp_path / "cache"
    with pytest.raises(InputError, match=r"distillation.source: 'live' -> 'cache'"):
        train_and_evaluate(cached(config, directory), tmp_path / "whole")


BAD = {
    "no teacher": ({"teacher": ""}, "source=live asks the teacher itself: say with"),
    "options": ({"teacher": "one?archh=resnet50"}, "expected arch and stem and image_"),
    "unknown path": ({"teacher": "nowhere"}, "nowhere"),
    "other names": ({"teacher": "other"}, "does not have the classes of digits .missi"),
    "other number": ({"teacher": "three"}, "does not have the classes of digits"),
    "of two, one": ({"teacher": "one,other"}, "other: the teacher does not have"),
    "near chance": ({"allow_weak_teacher": False}, "near chance: top-1 .* on digits t"),
    "view": ({"view": "plain"}, "sees the student's images. Set .*view=same"),
    "verify": ({"verify_every": 5}, "source='live' has no cache. Leave it out"),
    "verify, no teacher": (
        {"source": "cache", "verify_every": 5, "teacher": ""},
        "verify_every=5 asks the teacher itself",
    ),
    "verify, plain": (
        {"source": "cache", "verify_every": 5, "view": "plain"},
        "verify_every=5 with distillation.view='plain'",
    ),
}


@pytest.mark.parametrize(("fields", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_taught_is_refused_in_a_line(
    teachers, fields, message, monkeypatch
):
    monkeypatch.chdir(teachers)
    config = make_config("one", **fields)
    with pytest.raises(InputError, match=message) as refused:
        experiment.create(config, devices=jax.devices())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("field", teaching.OF_A_CACHE)
def test_a_field_of_a_cache_is_no_field_of_a_live_run(field):
    fields = ["epochs", f"distillation.{field}"]
    teaching.check_given(fields, "cache")
    with pytest.raises(InputError, match=f"distillation.{field} belongs to a cache"):
        teaching.check_given(fields, "live")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mixing", "place"), [("exact", "device"), ("linear", "host")], ids=str
)
def test_a_cache_is_compared_with_its_teacher(teachers, tmp_path, mixing, place):
    config = make_config(teachers / "one", mixing=mixing)
    config.augment.place = place
    config = cached(config, tmp_path / "cache")
    config.distillation.verify_every = 4
    found = {}
    for name in ("one", "two"):
        config.distillation.teacher = str(teachers / name)
        run = experiment.create(config, devices=jax.devices()[:2])
        with run.open_train_images() as images:
            batch = next(run.train_batches(images, 5, 6))
        resident = step.place_whole(run.resident_arrays(None), run.devices)
        found[name] = teaching.comparison(run)(batch, resident)
    gap, words = found["one"]
    assert 0 < gap < 1e-3
    assert words.endswith("as float16 rounds and the tolerance allows")
    gap, words = found["two"]
    assert gap > 0.1
    assert "ABOVE the tolerance of 0.02: " in words


@pytest.mark.slow
def test_a_run_says_how_far_its_cache_is_from_the_teacher(teachers, tmp_path, capsys):
    config = cached(make_config(teachers / "one"), tmp_path / "cache")
    config.epochs, config.steps_per_dispatch = 1.0, 2
    summaries = {}
    for name in ("one", "two", "none"):
        config.distillation.verify_every = 2
        config.distillation.teacher = str(teachers / name)
        if name == "none":
            config.distillation.verify_every, config.distillation.teacher = 0, ""
        summaries[name] = train_and_evaluate(config, tmp_path / name)
    rows = [row for row in writers.read(tmp_path / "two") if "train/cache_gap" in row]
    assert [row["step"] for row in rows] == [2, 4]
    out = capsys.readouterr().out
    assert out.count("as float16 rounds") == out.count("ABOVE the tolerance") == 2
    assert "is compared with the cache every 2 steps" in out
    for name in ("one", "two"):  # it changes nothing
        assert summaries[name]["eval"] == summaries["none"]["eval"]
        assert summaries[name]["teacher"] == summaries["none"]["teacher"]


def test_a_plan_has_the_teachers_cost(tmp_path, monkeypatch, capsys):
    program = targets.Program({}, None, 0, 0, {}, 0.0)
    lowered = []
    monkeypatch.setattr(dry_run, "_lower", lambda *about: lowered.append(about))
    monkeypatch.setattr(targets, "compile_program", lambda _: program)
    with small_models.whole_nano():
        card, params = run_directories.make(tmp_path / "teacher", image_size=24)
        planned = dry_run.show(make_config(tmp_path / "teacher"), tmp_path / "run")
        least = 32 * cost.forward_flops(card.create_model())
    assert planned["teacher_memory"] == 4 * count_parameters(params["raw"])
    assert least < planned["teacher_flops"] < 1.4 * least
    [(run, _)] = lowered
    student = 3 * 32 * cost.forward_flops(run.model)
    assert planned["flops_per_step"] == student + planned["teacher_flops"]
    out = capsys.readouterr().out
    assert f"live teacher   {planned['teacher_flops'] / 1e9:,.1f} of the GFLOPs" in out
    assert "of the device memory" in out
    assert "the teacher is live: " in out
