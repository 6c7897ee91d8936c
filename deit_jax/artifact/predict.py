"""Names what is in images: python predict.py IMAGE_OR_FOLDER ...

Needs Pillow and, for model.stablehlo, jax (on any of its platforms), for model.onnx
onnxruntime. The pixels are those of the training program (but for a level where an
image is over 16 times as long as wide). A file that cannot be read is reported, the
others go on, and the exit code is 1.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from deit_jax.data.sources.decode import open_rgb

HERE = Path(__file__).parent
CARD = json.loads((HERE / "model.json").read_text(encoding="utf-8"))
ENDINGS = frozenset(
    [".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff"]
)
HIDDEN = (".", "__MACOSX", "$RECYCLE.BIN", "@eaDir")  # what starts a name
BLOCK = 64  # images at once


def view(path) -> np.ndarray:
    """An image file as the model takes it: uint8 [S, S, 3], upright, its centre."""
    image = open_rgb(Path(path).read_bytes(), "it")
    size, shorter = CARD["image_size"], int(CARD["image_size"] / CARD["crop_ratio"])
    sides = [shorter * side // min(image.size) for side in image.size]
    left, top = (round((side - size) / 2) for side in sides)
    image = image.resize(sides, Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + size, top + size)))


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


def find(paths) -> list[Path]:
    """The files at `paths`, and the images in the folders among them."""
    found = []
    for path in map(Path, paths):
        inside = (
            p
            for p in path.rglob("*")
            if p.suffix.lower() in ENDINGS
            and not any(q.startswith(HIDDEN) for q in p.relative_to(path).parts)
        )
        found += sorted(inside) if path.is_dir() else [path]
    return found


def main(paths) -> int:
    if not paths:
        print(__doc__)
        return 2
    model, files, broken = load(), find(paths), 0
    for first in range(0, len(files), BLOCK):
        views = {}
        for file in files[first : first + BLOCK]:
            try:
                views[file] = view(file)
            except Exception as error:  # Pillow raises anything
                broken += 1
                print(f"error: {file}: {error}", file=sys.stderr)
        if not views:
            continue
        rows = model(np.stack([*views.values()]))["probabilities"]
        for file, row in zip(views, np.asarray(rows), strict=True):
            best = (
                f"{row[c]:.1%} {CARD['class_names'][c]}" for c in (-row).argsort()[:5]
            )
            print(file, *best, sep="  ")
    return int(broken > 0)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # a console may lack a class name's letters
        stream.reconfigure(errors="backslashreplace")
    sys.exit(main(sys.argv[1:]))
