"""Names what is in images: python predict.py PICTURE ...

Needs Pillow and, for model.stablehlo, jax (on any of its platforms), for model.onnx
onnxruntime. The pixels are those of the training program, except for images that are
transparent or 16-bit (and by a level where one is over 16 times as long as wide).
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).parent
CARD = json.loads((HERE / "model.json").read_text())


def view(path) -> np.ndarray:
    """An image file as the model takes it: uint8 [S, S, 3], upright, its centre."""
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    size, shorter = CARD["image_size"], int(CARD["image_size"] / CARD["crop_ratio"])
    sides = [shorter * side // min(picture.size) for side in picture.size]
    left, top = (round((side - size) / 2) for side in sides)
    picture = picture.resize(sides, Image.Resampling.BICUBIC)
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def load():
    """The model: uint8 [b, S, S, 3] -> {name: float32 [b, C]}, names in model.json."""
    path = HERE / CARD["file"]
    if CARD["format"] == "onnx":
        import onnxruntime

        session, names = onnxruntime.InferenceSession(str(path)), CARD["outputs"]
        return lambda images: dict(
            zip(names, session.run(names, {CARD["input"]: images}), strict=True)
        )
    import jax.export

    return jax.jit(jax.export.deserialize(path.read_bytes()).call)


if __name__ == "__main__":
    files = sys.argv[1:]
    probabilities = load()(np.stack([view(file) for file in files]))["probabilities"]
    for file, row in zip(files, np.asarray(probabilities), strict=True):
        best = (f"{row[c]:.1%} {CARD['class_names'][c]}" for c in (-row).argsort()[:5])
        print(file, *best, sep="  ")
