"""Files of weights that are not what they should be, and what is found out of them."""

import functools
import json
import pickle
import re
import sys
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy
from wrapped_weights import WRAPPED

from deit_jax.errors import InputError
from deit_jax.models.params import abstract_params
from deit_jax.models.variants import VARIANTS, create
from deit_jax.weights import (
    architecture,
    hugging_face,
    preprocessing,
    tensor_files,
    timm,
)
from deit_jax.weights.load import load

VARIANT = "deit_nano_distilled_patch8_32"
PLAIN = "vit_nano_patch8_32"


def state_dict(variant, num_classes=5, **settings):
    """timm's, of random weights."""
    rng = np.random.default_rng(0)
    model = create(variant, num_classes=num_classes, **settings)
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape, dtype=np.float32),
        abstract_params(model),
    )
    return timm.from_flax(params)


@pytest.fixture(scope="module")
def weights():
    return state_dict(VARIANT)


@pytest.fixture(scope="module")
def plain_weights():
    return state_dict(PLAIN)


def as_torch(tensors):
    torch = pytest.importorskip("torch")
    return {name: torch.tensor(value).contiguous() for name, value in tensors.items()}


def assert_equal(params, tensors):
    actual = timm.from_flax(params)
    assert actual.keys() == tensors.keys()
    for name, value in tensors.items():
        assert actual[name].dtype == np.float32
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


# What is read.


def test_a_safetensors_file_needs_no_torch(weights, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "w.safetensors"
    tensor_files.write_safetensors(path, weights)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}
    loaded = load(path)
    assert_equal(loaded.params, weights)
    assert (loaded.card.variant, loaded.card.num_classes) == (VARIANT, 5)
    assert len(loaded.notes) == 2  # no preprocessing and no names

    (tmp_path / "w.pth").write_bytes(b"\x80\2")
    with pytest.raises(InputError, match=r"needs torch: pip install .*safetensors"):
        load(tmp_path / "w.pth")


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(("wrap", "note"), WRAPPED.values(), ids=WRAPPED)
def test_a_student_is_found_wherever_a_script_put_it(
    weights, tmp_path, wrap, note, legacy
):
    torch = pytest.importorskip("torch")
    path = tmp_path / "w.pth.tar"
    content = wrap(as_torch(weights))
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    loaded = load(path)
    assert_equal(loaded.params, weights)
    said = [text for text in loaded.notes if "are taken, " in text]
    assert len(said) == (note is not None)
    assert note is None or re.search(note, said[0])


def test_the_average_is_taken_where_it_is_asked_for(weights, tmp_path):
    path = tmp_path / "w.ckpt"
    average = {name: value + 1 for name, value in weights.items()}
    tensors = {"model." + name: value for name, value in weights.items()}
    tensor_files.write_safetensors(path, tensors)
    with pytest.raises(InputError, match="has no averaged weights beside model"):
        load(path, weights="ema")
    tensors |= {"ema." + name: value for name, value in average.items()}
    tensor_files.write_safetensors(path, tensors)
    assert_equal(load(path).params, weights)
    loaded = load(path, weights="ema")
    assert_equal(loaded.params, average)
    assert "averaged weights of ema are taken, not those of model" in loaded.notes[0]


def write_npz(path, tensors):
    with open(path, "wb") as file:
        np.savez(file, **{"model." + name: value for name, value in tensors.items()})


def write_torch(path, tensors):
    pytest.importorskip("torch").save(as_torch(tensors), path)


def write_padded(length, path, tensors):
    """safetensors whose eight bytes of length begin like another kind of file."""
    tensor_files.write_safetensors(path, tensors)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    more = (length - size) % 256
    header = (size + more).to_bytes(8, "little") + content[8 : 8 + size]
    path.write_bytes(header + b" " * more + content[8 + size :])


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.bin", "w"])
@pytest.mark.parametrize(
    "write",
    [
        write_npz,
        functools.partial(write_padded, 0x80),
        functools.partial(write_padded, ord("{")),
        write_torch,
    ],
    ids=["npz", "like a pickle", "like JSON", "torch"],
)
def test_the_content_says_what_a_file_is(weights, tmp_path, monkeypatch, name, write):
    write(tmp_path / name, weights)
    if write is not write_torch:
        monkeypatch.setitem(sys.modules, "torch", None)
    assert_equal(load(tmp_path / name).params, weights)


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_floats_become_float32(weights, tmp_path, dtype, ending):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    rounded = {n: x.to(getattr(torch, dtype)) for n, x in as_torch(weights).items()}
    path = tmp_path / f"w.{ending}"
    (torch.save if ending == "pth" else save_file)(rounded, path)
    assert_equal(load(path).params, {n: x.float().numpy() for n, x in rounded.items()})


# What is refused as a file.


class Code:
    def __reduce__(self):
        return print, ("this ran",)


def bytes_of(content):
    return lambda path: path.write_bytes(content)


def torch_of(content):
    def write(path):
        torch = pytest.importorskip("torch")
        torch.save(content(torch), path)

    return write


def zip_of(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "x")


def header(text):
    encoded = text.encode()
    return bytes_of(len(encoded).to_bytes(8, "little") + encoded)


CODE = pickle.dumps({"model": Code()}, protocol=2)
HUGE = '{"head.weight":{"dtype":"F32","shape":[9999999999,96],"data_offsets":[0,4]}}'


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        (
            "w.pth",
            bytes_of(CODE),
            r"than tensors and plain values: \S*print, .*state_dict\(\)",
        ),
        (
            "w.pth",
            torch_of(lambda torch: {"model": Code()}),
            r"than tensors and plain values: \S*print, which",
        ),
        (
            "w.pth",
            torch_of(lambda torch: torch.nn.Linear(2, 2)),
            r"plain values: torch\.nn\S*\.Linear, which is not loaded",
        ),
        ("w.pth", bytes_of(pickle.dumps({})), "torch.save did not write"),
        ("w.bin", bytes_of(b"no weights"), "begins with b'no weights'"),
        ("w.pth", bytes_of(b" <!DOCTYPE html>"), "is a web page"),
        ("w.pth", bytes_of(b"version https://git-lfs.github"), "a pointer of Git LFS"),
        ("w.pth", bytes_of(b'{"a": 1}'), "damaged: it has no weight_map"),
        ("w.pth", zip_of, "torch.save did not write it"),
        ("w.pth", bytes_of(b""), "is no file of weights: it begins with b''"),
        ("w.pth", torch_of(lambda torch: [torch.ones(2)]), "holds a list, not a state"),
        ("w.pth", torch_of(lambda torch: {}), "no tensors of a model, but nothing"),
        (
            "w.pth",
            torch_of(lambda torch: {"optimizer": {"s": torch.ones(2)}, "epoch": 3}),
            "no tensors of a model, but optimizer, epoch",
        ),
        (
            "w.pth",
            torch_of(lambda torch: {(1,): torch.ones(2), "b": {"c": torch.ones(2)}}),
            r"holds no ViT .* It has \(1,\), b\.c\.",
        ),
        ("w.safetensors", header(HUGE), "is damaged: "),
        ("w.safetensors", header("{}"), "It has no tensors"),
        (
            "w.npz",
            lambda p: np.savez(p, a=np.array([{}], object)),
            "is damaged: Object",
        ),
        ("w.pth", lambda p: None, "w.pth does not exist"),
        ("w.pth", lambda p: p.mkdir(), r"has no model\.safetensors or pytorch_model"),
        ("https://host//w.pth", lambda p: None, "https://host//w.pth is an address"),
    ],
)
def test_a_file_without_weights_is_refused(tmp_path, capfd, name, write, message):
    path = name if "://" in name else tmp_path / name
    write(path)
    with pytest.raises(InputError, match=message):
        load(path)
    assert capfd.readouterr().out == ""


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("ending", ["safetensors", "pth", "legacy.pth"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_a_truncated_file_is_refused(weights, tmp_path, ending, share):
    path = tmp_path / f"w.{ending}"
    if ending == "safetensors":
        tensor_files.write_safetensors(path, weights)
    else:
        torch = pytest.importorskip("torch")
        new = ending == "pth"
        torch.save(as_torch(weights), path, _use_new_zipfile_serialization=new)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="is damaged"):
        load(path)


def test_a_directory_without_weights_says_what_is_there(tmp_path):
    (tmp_path / "b.pth").touch()
    with pytest.raises(InputError, match=r"Give a file of weights: it has b\.pth"):
        load(tmp_path)
    (tmp_path / "model.json").touch()
    with pytest.raises(InputError, match="is a run directory of this package"):
        load(tmp_path)


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_a_model_in_parts_is_read_through_its_index(weights, tmp_path, kind):
    stem, ending = kind.split(".")
    names, parts = sorted(weights), [f"{stem}-0000{i}-of-00003.{ending}" for i in "123"]
    write = write_torch if ending == "bin" else tensor_files.write_safetensors
    for i, part in enumerate(parts):
        write(tmp_path / part, {name: weights[name] for name in names[i::3]})
    with pytest.raises(InputError, match=rf"nor an index of parts .*{parts[0]}"):
        load(tmp_path)

    index = tmp_path / f"{kind}.index.json"
    place = {name: parts[i % 3] for i, name in enumerate(names)}
    index.write_text(json.dumps({"metadata": {}, "weight_map": place}))
    for path in (tmp_path, index):
        assert_equal(load(path).params, weights)
    write(tmp_path / parts[1], {name: weights[name] for name in names[4::3]})
    with pytest.raises(InputError, match=f"{names[1]}: missing"):
        load(tmp_path)
    (tmp_path / parts[1]).unlink()
    missing = rf"lists {parts[1]}, which .* does not have: \d+ of {len(names)} tensors"
    with pytest.raises(InputError, match=missing):
        load(tmp_path)


# What is refused of a state dict.


def without(*names):
    def change(tensors):
        for name in names:
            del tensors[name]

    return change


def with_(**shapes):
    def change(tensors):
        for name, shape in shapes.items():
            tensors[name.replace("__", ".")] = np.ones(shape, np.float32)

    return change


def with_nan(tensors):
    tensors["norm.bias"] = np.full(96, np.nan, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("head_dist.bias"), r"head_dist\.bias: missing, expected \(5,\)"),
        (without("head_dist.weight"), "distillation token without its head: of trans"),
        (without("blocks.2.attn.qkv.bias"), r"blocks\.2\.attn\.qkv\.bias: missing"),
        (with_(blocks__1__ls1__gamma=(96,)), r"ls1\.gamma: \(96,\), left over"),
        (
            with_(blocks__0__ls1__gamma=(96,)),
            "beside LayerScale pos_embed has a learned position of the class token",
        ),
        (
            with_(blocks__0__gamma_1=(96,), pos_embed=(1, 17, 96)),
            "pos_embed has 17 entries. Expected the patches of a square image",
        ),
        (with_(fc_norm__weight=(96,)), r"  norm\.weight: \(96,\), left over"),
        (with_(head_dist__bias=(6,)), r"head_dist\.bias: \(6,\), expected \(5,\)"),
        (
            with_(patch_embed__proj__weight=(96, 1, 8, 8)),
            r"\(96, 1, 8, 8\), expected \(96, 3, 8, 8\)",
        ),
        (without("head.weight"), r"has no head\.weight .*Give a model with a class"),
        (without("pos_embed"), r"no ViT or DeiT .* pos_embed is missing"),
        (with_(pos_embed=(18, 96)), r"pos_embed is \(18, 96\), expected 3 sides"),
        (with_(pos_embed=(1, 17, 96)), "pos_embed has 17 entries. Expected 2 and"),
        (with_(pos_embed=(1, 2, 96)), "pos_embed has 2 entries"),
        (without("dist_token"), "pos_embed has 18 entries. Expected 1 and"),
        (
            with_(blocks__4__norm1__weight=(96,)),
            r"not in this package: 96 wide, 5 deep, patches of 8 px, with distillation "
            r"token, without LayerScale.* 96 and 4 \(nano\)",
        ),
        (
            lambda x: (
                with_(blocks__0__ls3__gamma=(96,), blocks__3__ls3__gamma=(96,))(x),
                without("norm.bias")(x),
            ),
            r"\n  blocks\.0\.ls3.*\n  blocks\.3\.ls3.*\n  norm\.bias: missing.*$",
        ),
        (with_nan, r"norm\.bias has values that are not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, tmp_path, change, message):
    tensors = dict(weights)
    change(tensors)
    path = tmp_path / "w.safetensors"
    tensor_files.write_safetensors(path, tensors)
    with pytest.raises(InputError, match=message):
        load(path)


@pytest.mark.usefixtures("one_torch_thread")
def test_integers_are_no_weights(weights, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = as_torch(weights) | {"norm.bias": torch.ones(96, dtype=torch.int8)}
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"norm\.bias: int8, expected a floating"):
        load(tmp_path / "w.pth")


def test_two_models_are_told_apart_by_the_user(weights, tmp_path):
    path = tmp_path / "w.safetensors"
    tensors = {
        f"{who}.{name}": value
        for name, value in weights.items()
        for who in ("student", "teacher")
    }
    tensor_files.write_safetensors(path, tensors)
    with pytest.raises(InputError, match="holds several models: student, teacher"):
        load(path)


# Which variant it is.


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_found_by_its_shapes(variant):
    sizes = VARIANTS[variant]
    tokens = 0 if sizes["no_embed_class"] else 1 + sizes["distilled"]
    width, patch, side = sizes["width"], sizes["patch_size"], sizes["image_size"]
    names = [f"blocks.{i}.norm1.bias" for i in range(sizes["depth"])]
    shapes = dict.fromkeys(names, (width,)) | {
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "pos_embed": (1, tokens + (side // patch) ** 2, width),
        "head.weight": (7, width),
    }
    if sizes["distilled"]:
        shapes["dist_token"] = (1, 1, width)
    if sizes["init_values"]:
        shapes["blocks.0.ls1.gamma"] = (width,)
    zero = np.zeros(())
    tensors = {name: np.broadcast_to(zero, shape) for name, shape in shapes.items()}
    found, image_size = architecture.infer(tensors, "file")
    twins = {
        variant,
        variant.replace("vit_", "deit_"),
        variant.replace("deit_", "vit_"),
    }
    assert (set(found), image_size) == (twins & VARIANTS.keys(), side)


@pytest.mark.parametrize("classes", [10, 21841])
def test_a_file_of_deit3s_authors(tmp_path, classes):
    """Their names of LayerScale, in their checkpoints; after ImageNet-21k too."""
    torch = pytest.importorskip("torch")
    expected = state_dict("deit3_nano_patch8_32", num_classes=classes)
    theirs = {
        re.sub(r"ls(\d)\.gamma$", r"gamma_\1", name): value
        for name, value in as_torch(expected).items()
    }
    assert "blocks.3.gamma_2" in theirs
    torch.save({"model": theirs, "epoch": 800}, tmp_path / "deit_3.pth")
    loaded = load(tmp_path / "deit_3.pth")
    assert_equal(loaded.params, expected)
    card = loaded.card
    assert (card.variant, card.num_classes) == ("deit3_nano_patch8_32", classes)
    assert (card.mean, card.crop_ratio) == (timm.IMAGENET[0], 1.0)


def test_one_architecture_has_two_names(plain_weights, tmp_path):
    path = tmp_path / "w.safetensors"
    tensor_files.write_safetensors(path, plain_weights)
    loaded = load(path)
    assert loaded.card.variant == "deit_nano_patch8_32"
    assert "vit_nano_patch8_32 and deit_nano_patch8_32 are one" in loaded.notes[0]
    loaded = load(path, variant=PLAIN, class_names=list("abcde"))
    assert (loaded.card.variant, loaded.card.mean) == (PLAIN, (0.5, 0.5, 0.5))
    assert len(loaded.notes) == 1  # of the preprocessing

    for config in ({"architecture": "vit_tiny_patch16_224"}, {"model_type": "vit"}):
        # The second is no config of timm, so that it does not count.
        config |= {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1}
        (tmp_path / "config.json").write_text(json.dumps(config))
        family = "vit" if "architecture" in config else "deit"
        assert load(path).card.variant == f"{family}_nano_patch8_32"


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("deit_nano_patch8_32", rf"the weights of .* are {VARIANT}\."),
        ("deit_tiny_distilled_patch16_224", rf"are {VARIANT}\."),
        ("deit_nano", "unknown model variant 'deit_nano'"),
    ],
)
def test_another_variant_is_refused(weights, tmp_path, variant, message):
    tensor_files.write_safetensors(tmp_path / "w.safetensors", weights)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "w.safetensors", variant=variant)


def test_another_resolution_is_kept(tmp_path):
    tensors = state_dict(VARIANT, image_size=48)
    tensor_files.write_safetensors(tmp_path / "w.safetensors", tensors)
    loaded = load(tmp_path / "w.safetensors")
    assert (loaded.card.variant, loaded.card.image_size) == (VARIANT, 48)
    assert any("the weights are for 48 px" in note for note in loaded.notes)
    assert_equal(loaded.params, tensors)


# What stands beside the weights.


@pytest.fixture
def saved(tmp_path, plain_weights):
    """A function that writes a directory of transformers and loads it."""

    def save(config=None, preprocessor=None, change=None, **options):
        tensors = hugging_face.from_timm(plain_weights)
        if change:
            change(tensors)
        tensor_files.write_safetensors(tmp_path / "model.safetensors", tensors)
        if config is not None:
            config = {"model_type": "vit"} | config
            (tmp_path / "config.json").write_text(json.dumps(config))
        if preprocessor is not None:
            path = tmp_path / "preprocessor_config.json"
            path.write_text(json.dumps(preprocessor))
        return load(tmp_path, **options)

    return save


SQUARE = {"height": 256, "width": 256}
GIVEN = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}


@pytest.mark.parametrize(
    ("preprocessor", "ratio", "note"),
    [
        ({"size": 224}, 1.0, "straight to a square"),
        ({"size": SQUARE, "crop_size": 224}, 0.875, "straight to a square"),
        ({"size": SQUARE, "crop_size": 224, "do_center_crop": False}, 1.0, "straight"),
        (
            {
                "size": {"shortest_edge": 248},
                "crop_size": {"height": 224, "width": 224},
            },
            224 / 248,
            None,
        ),
        ({"size": {"shortest_edge": 32}, "resample": 2}, 1.0, "Pillow's number 2"),
    ],
)
def test_the_preprocessing_of_transformers(saved, preprocessor, ratio, note):
    loaded = saved({"id2label": dict(enumerate("abcde"))}, GIVEN | preprocessor)
    card = loaded.card
    assert (card.mean, card.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (card.crop_ratio, card.class_names) == (ratio, tuple("abcde"))
    assert len(loaded.notes) == (note is not None)
    assert note is None or note in loaded.notes[0]


def test_a_crop_ratio_gives_back_the_size():
    for crop in (32, 224, 384):
        for resized in range(crop, 3 * crop):
            assert int(crop / preprocessing.crop_ratio(crop, resized)) == resized


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_attention_heads": 12}, "num_attention_heads=12, but vit_nano.* has 3"),
        ({"hidden_act": "gelu_new"}, "hidden_act='gelu_new', but vit_nano"),
        ({"id2label": {"0": "a"}}, "id2label .* is no list .* 5 classes"),
    ],
)
def test_a_config_of_another_model_is_refused(saved, config, message):
    with pytest.raises(InputError, match=message):
        saved(config)


@pytest.mark.parametrize(
    ("preprocessor", "message"),
    [
        (GIVEN | {"image_std": [1, 0, 1], "size": 8}, "std is .* Give --std"),
        ({"size": 8}, r"mean is None, .* Give --mean"),
        (GIVEN | {"size": 8, "rescale_factor": 1}, "not scaled by 1/255"),
        (GIVEN, "is None, .* Give --crop_ratio"),
        (GIVEN | {"size": 8, "crop_size": 9}, "1.125, .* Give --crop_ratio"),
        ([], r"preprocessor_config\.json is damaged: it is no object"),
    ],
)
def test_a_preprocessing_that_is_not_ours_is_refused(saved, preprocessor, message):
    with pytest.raises(InputError, match=message):
        saved(preprocessor=preprocessor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("vit.encoder.layer.1.attention.attention.key.bias"),
            r"blocks\.1\.attn\.qkv\.bias: missing, expected \(288,\)",
        ),
        (with_(vit__layernorm__bias=(95,)), r"bias: \(95,\), expected"),
        (without("classifier.weight"), r"\(classifier\.weight in transformers\)"),
        (
            with_(
                vit__embeddings__distillation_token=(1, 1, 96),
                vit__embeddings__position_embeddings=(1, 18, 96),
            ),
            "has the distillation token without its head: .* take a DeiT.*WithTeacher",
        ),
    ],
)
def test_tensors_of_transformers_that_do_not_fit_are_refused(saved, change, message):
    with pytest.raises(InputError, match=message):
        saved(change=change)


def test_what_is_given_replaces_what_is_wrong(saved):
    loaded = saved(
        {"id2label": {"0": "a"}, "layer_norm_eps": 1e-12},
        {"size": 8, "crop_size": 9},
        with_(vit__embeddings__mask_token=(1, 1, 96)),
        class_names=list("vwxyz"),
        mean=(0, 0, 0),
        std=(1, 1, 1),
        crop_ratio=0.5,
    )
    assert loaded.card.class_names == tuple("vwxyz")
    assert (loaded.card.mean, loaded.card.crop_ratio) == ((0, 0, 0), 0.5)
    left_out, epsilon = loaded.notes
    assert left_out.startswith("vit.embeddings.mask_token: left out")
    assert "layer_norm_eps=1e-12" in epsilon


def test_class_names_are_as_many_as_the_classes(saved):
    with pytest.raises(InputError, match="4 class names for 5 classes"):
        saved(class_names=list("abcd"))


@pytest.mark.parametrize("text", ["", "{", "3"])
def test_a_damaged_config_is_refused(plain_weights, tmp_path, text):
    tensor_files.write_safetensors(tmp_path / "model.safetensors", plain_weights)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json is damaged: "):
        load(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"global_pool": "avg"}, "global_pool='avg', but .* has 'token'"),
        ({"model_args": {"num_heads": 4}}, "num_heads=4, but .* has 3"),
        ({"label_names": ["a"]}, "label_names .* is no list .* 5 classes"),
        ({"mean": 3}, "mean is 3, expected three numbers"),
    ],
)
def test_a_config_of_timm_that_is_not_ours(weights, tmp_path, config, message):
    good = {"architecture": "deit_tiny_distilled_patch16_224", "mean": [0] * 3}
    good |= {"std": [1] * 3, "crop_pct": 1.0}
    tensor_files.write_safetensors(tmp_path / "model.safetensors", weights)
    (tmp_path / "config.json").write_text(json.dumps(good | config))
    with pytest.raises(InputError, match=message):
        load(tmp_path)


def test_descriptions_are_preferred_to_names(weights, tmp_path):
    config = {
        "architecture": "deit_tiny_distilled_patch16_224",
        "label_names": ["n1", "n2", "n3", "n4", "n5"],
        "pretrained_cfg": {
            "mean": [0, 0, 0],
            "std": [1, 1, 1],
            "crop_pct": 0.9,
            "interpolation": "bilinear",
            "crop_mode": "squash",
            "label_descriptions": {"n1": "tench", "n5": "crane"},
        },
    }
    tensor_files.write_safetensors(tmp_path / "model.safetensors", weights)
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load(tmp_path)
    assert loaded.card.class_names == ("tench", "n2", "n3", "n4", "crane")
    assert len(loaded.notes) == 2
    assert "bilinear" in loaded.notes[0] and "squash" in loaded.notes[1]
