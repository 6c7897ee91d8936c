"""Labelled images with random access.

A source has `len(source)`, `source[i] -> {"image": uint8 [H, W, 3], "label": int}`,
`source.pil_images(indices)` (yields Pillow images, RGB and upright, with their labels),
`source.name` and `source.split` (what was opened), `source.num_classes`,
`source.class_names` (in the order of the labels), `source.labels` (int32 [N], from 0),
`source.image_shape` ((H, W, 3), or None where sizes differ), `source.notes` (what a
user should be told of how the data were found) and `source.fingerprint`: the sha256
(hex) of everything that makes the data set what it is. A teacher cache belongs to one
fingerprint.

There are two kinds. `ArraySource` (`arrays`) lies in memory. `EncodedSource`
(`encoded`) reads encoded images from disk, and pickles to its paths;
`load_into_memory` makes the first of the second.
"""

import numpy as np

from deit_jax.data.sources import cifar, folder, tar_shards, tfds
from deit_jax.data.sources.arrays import ArraySource
from deit_jax.data.sources.encoded import EncodedSource
from deit_jax.data.sources.fingerprints import blocks, fingerprint
from deit_jax.data.sources.split import parse_split
from deit_jax.errors import InputError

# Names that say where the data lie: their contents decide, not how they are spelt.
PLACES = (folder.PREFIX, cifar.PREFIX, tar_shards.PREFIX, "hf:")
DIGITS_TRAIN = 1440  # of 1,797; the rest is the test split
DIGITS_SCALE = 4  # every pixel of the 8 x 8 original becomes 4 x 4: 32 x 32


def load(name: str, split: str, *, data_dir: str | None = None):
    """Opens `split` of the data set `name`.

    Args:
      name: One of

        - `digits`: scikit-learn's 1,797 handwritten digits, which need no download;
        - `cifar10`, `cifar100`, `imagenet2012` or another image classification set of
          TFDS (`deit_jax.data.sources.tfds`);
        - `folder:/path`: images in class folders (`deit_jax.data.sources.folder`);
        - `cifar:/path`: CIFAR-10 or -100 as published (`deit_jax.data.sources.cifar`);
        - `hf:org/name`, `hf:/path`: Parquet files of the Hugging Face Hub
          (`deit_jax.data.sources.hub`);
        - `tar:/path/{000..099}.tar`: shards of webdataset
          (`deit_jax.data.sources.tar_shards`).
      split: `train`, `val`, `test` or another that there is, or a slice in TFDS syntax:
        `train[:1200]`, `train[80%:]`. Where there is only one of `val` and `test`, it
        serves for both, and the source's `split` says which it is.
      data_dir: Where TFDS keeps its sets, and `hf:` and `tar:` what they make of
        theirs; None is a default of each.

    Returns:
      An `ArraySource` of `digits` and `cifar:`, an `EncodedSource` of the others.

    Raises:
      InputError: There is no such data set or split, it cannot be downloaded or
        prepared, it has fewer than two classes, a class has no training image, a split
        has a class that `train` lacks, or files are missing or damaged.
    """
    if name == "digits":
        return _digits(split)
    if name.startswith(folder.PREFIX):
        return folder.open_folder(name, split)
    if name.startswith(cifar.PREFIX):
        return cifar.open_cifar(name, split)
    if name.startswith(tar_shards.PREFIX):
        return tar_shards.open_tar(name, split, data_dir)
    if name.startswith("hf:"):
        from deit_jax.data.sources import hub  # pyarrow takes a while

        return hub.open_hub(name, split, data_dir)
    return tfds.open_tfds(name, split, data_dir)


def load_into_memory(source: ArraySource | EncodedSource) -> ArraySource:
    """Decodes all images of a source that has an `image_shape`.

    Name, split and fingerprint stay the same. CIFAR-10's 50,000 images take 154 MB.

    Raises:
      InputError: Sizes differ, or an image is damaged; it is named.
    """
    if isinstance(source, ArraySource):
        return source
    if source.image_shape is None:
        raise InputError(
            f"the images of {source.name} differ in size, so they cannot lie in "
            "memory as one array."
        )
    images = np.empty((len(source), *source.image_shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    for block in blocks(np.arange(len(source))):
        read = source.pil_images(block)
        for index, (image, label) in zip(block, read, strict=True):
            if image.size != source.image_shape[1::-1]:
                raise InputError(
                    f"{source.where(index)} is {image.width} x {image.height}, all "
                    f"images of {source.name} should be {source.image_shape}."
                )
            images[index], labels[index] = image, label
    return ArraySource(
        source.name,
        source.split,
        images,
        labels,
        source.class_names,
        source.fingerprint,
        source.notes,
    )


def _digits(split: str) -> ArraySource:
    """The UCI optical digits (1998), as scikit-learn bundles them.

    The split is a fixed permutation (NumPy's frozen `RandomState`): 1,440 training
    and 357 test images, so a writer can occur in both.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.RandomState(0).permutation(len(data.target))
    ids = {"train": order[:DIGITS_TRAIN], "test": order[DIGITS_TRAIN:]}
    base, start, stop = parse_split(split, {k: len(v) for k, v in ids.items()})
    ids = ids[base][start:stop]
    raw = data.images[ids].astype(np.uint8)  # [N, 8, 8], levels 0 .. 16
    labels = data.target[ids].astype(np.int32)
    grey = (raw.astype(np.int32) * 255 // 16).astype(np.uint8)
    grey = grey.repeat(DIGITS_SCALE, axis=1).repeat(DIGITS_SCALE, axis=2)
    return ArraySource(
        "digits",
        split,
        np.repeat(grey[..., None], 3, axis=-1),
        labels,
        tuple(map(str, data.target_names)),
        fingerprint("digits", "1", split, labels, ids, raw),
    )
