"""How fast the logits of a batch are beside timm's: same model, batch and precision.

    python -m benchmarks.inference --peer=timm --json=inference.json

As benchmarks/train_step.py. Both sides take uint8 images, normalise them and apply both
heads. Of timm's modes max-autotune is tried too; on a CPU it treats the weights as
constants. `--modes=onnxruntime` is ONNX Runtime on the file that `deit_jax.export`
makes of the same model.
"""

from benchmarks import cases, compare


def main(argv=None) -> dict:
    return compare.main(
        __doc__.partition("\n")[0],
        cases.INFERENCE,
        argv,
        modes="eager,compile,max-autotune",
    )


if __name__ == "__main__":
    main()
