"""How fast a train step is beside timm's: same model, batch, precision and loss.

    python -m benchmarks.train_step --peer=timm --json=train_step.json
    python -m benchmarks.train_step --peer=none --cases=train_32

Both sides run in turns, each run in a process of its own with the best settings known
for it (large pages, all cores). The ratio is ours / theirs in images a second, against
the fastest of timm's modes; at least 1 is no slower. Our step holds all of the
augmentation but the crop of large images. What timm does in its loader's workers
(crop, flip, RandAugment) is not in its step, see benchmarks/timm_peer.py; the `_plain`
cases leave augmentation out on both sides. Parts are timed as programs of their own
(ours) or one after another (timm), in the last pair.
"""

from benchmarks import cases, compare


def main(argv=None) -> dict:
    return compare.main(__doc__.partition("\n")[0], cases.TRAIN, argv)


if __name__ == "__main__":
    main()
