"""Weights of timm and transformers: the same logits and gradients, there and back."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
from PIL import Image

from deit_jax import trained_model
from deit_jax.convert import import_weights
from deit_jax.data import crops
from deit_jax.errors import InputError
from deit_jax.models.model_card import ModelCard
from deit_jax.models.variants import VARIANTS, create
from deit_jax.weights import download, hugging_face, preprocessing, save
from deit_jax.weights import timm as timm_layout
from deit_jax.weights.load import load

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

import timm_weights  # noqa: E402
from timm_weights import as_dict, randomise, to_torch  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def random_images(batch, side):
    rng = np.random.default_rng(0)
    return rng.standard_normal((batch, side, side, 3), dtype=np.float32)


def card_of(variant, num_classes=10, **fields):
    side = VARIANTS[variant]["image_size"]
    names = tuple(f"class {index}" for index in range(num_classes))
    card = ModelCard(variant, side, names, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 0.875)
    return dataclasses.replace(card, **fields)


def timm_model(card):
    """timm's model of a card, with random weights that give logits of about 1."""
    pool = {"token": "token", "mean": "avg"}[card.pool]
    return timm_weights.make(
        card.variant,
        img_size=card.image_size,
        num_classes=card.num_classes,
        global_pool=pool,
    )


def save_state_dict(model, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(model.state_dict(), path)
    return path


def transformers_logits(model, images):
    with torch.no_grad():
        output = model.eval()(to_torch(images))
    if hasattr(output, "cls_logits"):
        return {"class": output.cls_logits, "distill": output.distillation_logits}
    return {"class": output.logits}


def assert_same_logits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        value = value.detach().numpy()
        # Weights that give small logits would make 1e-4 easy.
        assert 0.5 < value.std() < 5
        np.testing.assert_allclose(actual[name], value, rtol=0, atol=1e-4)


def assert_same_params(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "side"), [("tiny", 224), ("tiny", 384), ("small", 224), ("base", 224)]
)
@pytest.mark.parametrize("model", ["vit_{}", "deit_{}_distilled"])
def test_logits_equal_those_of_timm_and_transformers(model, size, side, tmp_path):
    variant = f"{model.format(size)}_patch16_{side}"
    card = card_of(variant)
    theirs = timm_model(card)
    loaded = load(save_state_dict(theirs, tmp_path), variant=variant)
    images = random_images(1, side)
    with jax.default_matmul_precision("highest"):
        actual = jax.jit(create(variant, num_classes=10).apply)(
            {"params": loaded.params}, images
        )
    with torch.no_grad():
        assert_same_logits(actual, as_dict(theirs(to_torch(images))))

    save.save(tmp_path / "hf", loaded.params, card, layout="hf")
    exported = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "hf"
    )
    assert_same_logits(actual, transformers_logits(exported, images))

    # And back, from what transformers itself writes.
    exported.save_pretrained(tmp_path / "hf again")
    again = load(tmp_path / "hf again")
    assert_same_params(again.params, loaded.params)
    assert again.card.class_names == card.class_names
    assert again.card.variant == variant


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "pool"),
    [
        ("deit3_small_patch16_224", "token"),
        ("deit3_small_distilled_patch16_224", "token"),
        ("deit3_tiny_patch8_64", "mean"),
        ("vit_tiny_patch16_224", "mean"),
        ("vit_small_patch32_224", "token"),
        ("deit3_large_patch16_384", "token"),
        ("deit3_huge_patch14_224", "token"),
        ("deit_large_distilled_patch16_224", "token"),
    ],
)
def test_two_blocks_have_timms_logits_and_gradients(
    monkeypatch, tmp_path, variant, pool
):
    """Models that are whole too large for a test."""
    monkeypatch.setitem(VARIANTS, variant, VARIANTS[variant] | {"depth": 2})
    card = card_of(variant, pool=pool)
    theirs = timm_model(card)
    loaded = load(save_state_dict(theirs, tmp_path), variant=variant)
    assert (loaded.card.variant, loaded.card.pool) == (variant, pool)
    images = random_images(2, card.image_size)
    assert_same_logits_and_gradients(loaded, theirs, images)
    # Back: to the bit what was read.
    save.save(tmp_path / "again.safetensors", loaded.params, card, layout="timm")
    again = safetensors.load_file(tmp_path / "again.safetensors")
    assert again.keys() == theirs.state_dict().keys()
    assert all(torch.equal(again[n], x) for n, x in theirs.state_dict().items())
    if VARIANTS[variant]["init_values"] is None and pool == "token":
        save.save(tmp_path / "hf", loaded.params, card, layout="hf")
        exported = transformers.AutoModelForImageClassification.from_pretrained(
            tmp_path / "hf"
        )
        with torch.no_grad():
            expected = transformers_logits(exported, images)
        with jax.default_matmul_precision("highest"):
            actual = jax.jit(loaded.card.create_model().apply)(
                {"params": loaded.params}, images
            )
        assert_same_logits(actual, expected)
        assert_same_params(load(tmp_path / "hf").params, loaded.params)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        "deit_tiny_distilled_patch16_224",
        "deit_small_distilled_patch16_224",
        "deit3_small_patch16_224",
    ],
)
def test_gradients_of_a_step_equal_timms(variant, tmp_path):
    card = card_of(variant)
    theirs = timm_model(card)
    loaded = load(save_state_dict(theirs, tmp_path), variant=variant)
    assert_same_logits_and_gradients(loaded, theirs, random_images(2, 224))


def assert_same_logits_and_gradients(loaded, theirs, images):
    """The logits to 1e-4, and the gradients of the heads' cross-entropy to 1e-3."""
    labels = np.array([3, 7])
    model = loaded.card.create_model()

    def loss(params):
        logits = model.apply({"params": params}, images)
        value = sum(
            optax.losses.softmax_cross_entropy_with_integer_labels(x, labels).mean()
            for x in logits.values()
        )
        return value, logits

    with jax.default_matmul_precision("highest"):
        (actual_loss, logits), gradients = jax.jit(
            jax.value_and_grad(loss, has_aux=True)
        )(loaded.params)
    expected_logits = as_dict(theirs(to_torch(images)))
    assert_same_logits(logits, expected_logits)
    expected_loss = sum(
        torch.nn.functional.cross_entropy(x, torch.from_numpy(labels))
        for x in expected_logits.values()
    )
    expected_loss.backward()

    np.testing.assert_allclose(actual_loss, expected_loss.item(), rtol=1e-5)
    actual = timm_layout.from_flax(gradients)
    expected = {name: x.grad.numpy() for name, x in theirs.named_parameters()}
    assert actual.keys() == expected.keys()
    # Where timm has positions of tokens that ours does not have.
    patches = actual["pos_embed"].shape[1]
    expected["pos_embed"] = expected["pos_embed"][:, -patches:]
    for name, value in expected.items():
        error = np.linalg.norm(actual[name] - value) / np.linalg.norm(value)
        assert error < 1e-3, (name, error)


# Images.


def pictures():
    """64 of them: smooth noise, of sides from 8 to 900 px, tall and wide."""
    rng = np.random.default_rng(0)
    sides = [(8, 8), (8, 900), (900, 8), (900, 900), (224, 224), (248, 249)]
    sides += [tuple(map(int, rng.integers(8, 901, 2))) for _ in range(58)]
    for size in sides:
        coarse = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
        yield Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.slow
def test_images_give_timms_logits(tmp_path, monkeypatch):
    name = "deit_tiny_distilled_patch16_224"
    theirs = timm.create_model(name)
    randomise(theirs)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: theirs)
    told = import_weights(f"timm:{name}", tmp_path / "run")
    assert "note:" not in told
    ours = trained_model.load(tmp_path / "run")
    assert ours.card.class_names[0] == "tench, Tinca tinca"
    assert ours.card.origin == f"timm:{name}"

    data = timm.data.resolve_model_data_config(theirs)
    transform = timm.data.create_transform(**data)
    inputs = torch.stack([transform(picture) for picture in pictures()])
    views = np.stack([ours.view(picture) for picture in pictures()])
    mean, std = (np.reshape(data[key], (1, 1, 1, 3)) for key in ("mean", "std"))
    levels = (inputs.numpy().transpose(0, 2, 3, 1) * std + mean) * 255
    # Of an image longer than 16:1 only what is seen is resized: a level off at most.
    long = np.array([max(p.size) > crops.LONGEST * min(p.size) for p in pictures()])
    assert 2 < long.sum() < 8
    np.testing.assert_allclose(views[~long], levels[~long], rtol=0, atol=0.01)
    np.testing.assert_allclose(views[long], levels[long], rtol=0, atol=1.01)
    with torch.no_grad():
        # In evaluation timm has the mean of the heads.
        expected = torch.cat([theirs.eval()(part) for part in inputs.split(16)])
    actual = np.concatenate(
        [ours.logits(views[start : start + 16])["mean"] for start in range(0, 64, 16)]
    )
    expected = expected.numpy()
    error = np.abs(actual - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert np.abs(expected).max(axis=1).min() > 1
    assert error[~long].max() < 1e-4
    assert error[long].max() < 2e-3
    assert (actual.argmax(1) == expected.argmax(1)).all()


def test_the_classes_of_imagenet_21k_have_their_names(monkeypatch):
    card = card_of("vit_nano_patch8_32", num_classes=21843)
    theirs = timm_model(card)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: theirs)
    monkeypatch.setattr(download, "_ask_hub", lambda: None)
    loaded = load("timm:vit_base_patch16_224.augreg_in21k", variant=card.variant)
    assert len(loaded.card.class_names) == 21843
    assert "tench, Tinca tinca" in loaded.card.class_names


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "pool"),
    [
        ("deit3_nano_patch8_32", "token"),
        ("deit3_nano_distilled_patch8_32", "token"),
        ("deit3_nano_patch8_32", "mean"),
        ("vit_nano_patch4_32", "mean"),
    ],
)
def test_timm_loads_an_export_of_any_kind(tmp_path, variant, pool):
    card = card_of(variant, pool=pool, image_size=48)
    loaded = load(save_state_dict(timm_model(card), tmp_path), variant=variant)
    save.save(tmp_path / "run", loaded.params, card, layout="timm")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True).train()
    if VARIANTS[variant]["distilled"]:
        theirs.set_distilled_training(True)
    images = random_images(2, 48)
    with torch.no_grad():
        expected = as_dict(theirs(to_torch(images)))
    actual = card.create_model().apply({"params": loaded.params}, images)
    assert_same_logits(actual, expected)
    again = load(tmp_path / "run")
    assert_same_params(again.params, loaded.params)
    assert again.card == dataclasses.replace(card, origin=str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("variant", "pool", "layout", "message"),
    [
        (
            "deit3_nano_patch8_32",
            "token",
            "hf",
            "transformers .* LayerScale.*--to=timm",
        ),
        ("vit_nano_patch8_32", "mean", "hf", "transformers .* mean .*take --to=timm"),
        ("deit_nano_distilled_patch8_32", "mean", "timm", "timm has no .* mean of the"),
    ],
)
def test_what_a_program_has_no_model_for_is_not_written(
    tmp_path, variant, pool, layout, message
):
    card = card_of(variant, pool=pool)
    with pytest.raises(InputError, match=message):
        save.save(tmp_path / "out", {}, card, layout=layout)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["timm", "hf"])
def test_an_export_prepares_images_as_we_do(tmp_path, layout):
    card = card_of("deit_nano_distilled_patch8_32", crop_ratio=32 / 37)
    params = timm_layout.to_flax(
        {name: x.numpy() for name, x in timm_model(card).state_dict().items()}
    )
    save.save(tmp_path, params, card, layout=layout)
    if layout == "timm":
        model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
        assert tuple(model.pretrained_cfg["label_names"]) == card.class_names
        expected = {name: x.numpy() for name, x in model.state_dict().items()}
        prepare = timm.data.create_transform(
            **timm.data.resolve_data_config(model=model)
        )
    else:
        model = transformers.DeiTForImageClassificationWithTeacher.from_pretrained(
            tmp_path
        )
        assert tuple(model.config.id2label.values()) == card.class_names
        # Pillow's pixels; the other backend's differ by a level here and there.
        processor = transformers.AutoImageProcessor.from_pretrained(
            tmp_path, backend="pil"
        )

        def prepare(picture):
            return processor(picture, return_tensors="pt")["pixel_values"][0]

    again = load(tmp_path)
    assert_same_params(again.params, params)
    assert again.notes == ()
    assert again.card == dataclasses.replace(card, origin=str(tmp_path))
    if layout == "timm":
        assert_same_params(timm_layout.to_flax(expected), params)

    trained = trained_model.TrainedModel(again.card, again.params, 0, "raw")
    sizes = [(32, 32), (300, 400), (400, 300), (20, 33)]
    if layout == "timm":  # transformers rounds half a pixel down
        sizes += [(50, 91), (91, 50)]
    for size in sizes:
        picture = next(pictures()).resize(size)
        ours = trained.view(picture) / 255
        ours = (ours - np.reshape(card.mean, (1, 1, 3))) / np.reshape(
            card.std, (1, 1, 3)
        )
        np.testing.assert_allclose(
            prepare(picture).numpy().transpose(1, 2, 0), ours, atol=1e-5
        )


# Tables and names.


def test_weights_alone_are_prepared_as_by_deits_authors_or_timm():
    for name in timm_layout.NAMES:
        config = timm.get_pretrained_cfg(name)
        if config.num_classes == 0:
            continue  # of a backbone without a head
        found = preprocessing.of_variant(name, [])
        ratio = {"deit": 0.875, "deit3": 1.0}.get(
            name.partition("_")[0], config.crop_pct
        )
        expected = {"mean": config.mean, "std": config.std, "crop_ratio": ratio}
        assert found == expected
        expected["crop_ratio"] = config.crop_pct
        assert preprocessing.from_timm(config.to_dict(), []) == expected
        assert (config.interpolation, config.crop_mode) == ("bicubic", "center")


def test_names_that_timm_has():
    assert {name for name in VARIANTS if timm.is_model(name)} == timm_layout.NAMES


@pytest.mark.parametrize(
    "variant",
    [n for n in VARIANTS if "tiny" in n or n.endswith(("16_224", "14_224", "8_32"))],
)
def test_timm_makes_every_variant_from_its_config(variant):
    config = timm_layout.config(card_of(variant))
    with torch.device("meta"):
        model = timm.create_model(
            config["architecture"], num_classes=10, **config["model_args"]
        )
    sizes = VARIANTS[variant]
    side = sizes["image_size"]
    assert model.patch_embed.img_size == (side, side)
    assert model.patch_embed.patch_size == (sizes["patch_size"],) * 2
    assert model.embed_dim == sizes["width"]
    assert len(model.blocks) == sizes["depth"]
    assert model.blocks[0].attn.num_heads == sizes["num_heads"]
    assert hasattr(model, "dist_token") == sizes["distilled"]
    assert hasattr(model.blocks[0].ls1, "gamma") == (sizes["init_values"] is not None)
    assert model.no_embed_class == (sizes["no_embed_class"] and not sizes["distilled"])
    assert ("model_args" in config and config["model_args"] == {}) == (
        variant in timm_layout.NAMES
    )


def tiny_transformers_model(kind, **fields):
    """With the sizes of our nano models, as transformers 5 makes it itself."""
    config = transformers.ViTConfig if "ViT" in kind else transformers.DeiTConfig
    sizes = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3}
    sizes |= {"intermediate_size": 384, "image_size": 32, "patch_size": 8}
    sizes |= {"num_labels": 5}
    return getattr(transformers, kind)(config(**sizes | fields))


@pytest.mark.parametrize(
    ("kind", "variant"),
    [
        ("ViTForImageClassification", "vit_nano_patch8_32"),
        ("DeiTForImageClassificationWithTeacher", "deit_nano_distilled_patch8_32"),
    ],
)
def test_names_in_memory_and_in_files_are_one_model(tmp_path, kind, variant):
    model = tiny_transformers_model(kind, layer_norm_eps=1e-6)
    model.save_pretrained(tmp_path / "saved")
    saved = load(tmp_path / "saved")
    torch.save(model.state_dict(), tmp_path / "in_memory.bin")
    in_memory = load(tmp_path / "in_memory.bin")
    assert saved.card.variant == in_memory.card.variant == variant
    assert_same_params(in_memory.params, saved.params)
    assert saved.card.class_names == tuple(f"LABEL_{index}" for index in range(5))
    published = safetensors.load_file(tmp_path / "saved/model.safetensors")
    ours = hugging_face.from_timm(timm_layout.from_flax(saved.params))
    assert ours.keys() == published.keys()


def test_a_config_of_transformers_is_the_one_it_would_write(tmp_path):
    model = tiny_transformers_model(
        "DeiTForImageClassificationWithTeacher", layer_norm_eps=1e-6
    )
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    names = tuple(f"LABEL_{index}" for index in range(5))
    ours = hugging_face.config(
        card_of("deit_nano_distilled_patch8_32", class_names=names)
    )
    assert ours.items() <= written.items()
    assert written.keys() - ours.keys() <= {
        "dtype",
        "transformers_version",
        "encoder_stride",
        "initializer_range",
        "pooler_act",
        "pooler_output_size",
    }
