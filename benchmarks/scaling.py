"""What more devices cost a train step, beside the work that they share.

    python -m benchmarks.scaling --json=scaling.json

Compiles the train step for 1, 2, 4 and 8 (forced) CPU devices with the same batch on
each, and reads two things from the programs, without running them: the floating-point
operations of a device, which should not grow, and what the collectives move, which
should be the gradient once. Wall time of forced devices says nothing: they share the
cores.

A ring all-reduce, the least that is possible, sends 2 (n - 1) / n of its payload from
every device. XLA counts the body of a loop once: on a CPU the augmentation is one.
"""

import argparse
import contextlib
import dataclasses
import json
from pathlib import Path

import jax

from benchmarks import cases, ours
from benchmarks.cases import Case
from deit_jax import targets
from deit_jax.models.params import count_parameters

DEVICES = (1, 2, 4, 8)


def measure(case: Case, devices) -> dict:
    """Compiles the step of `case` for `devices`, its batch on each of them.

    Returns:
      `devices`, `flops` of one device, `collectives` (`targets.collectives`), their
      `payload_bytes` in all, and `gradient_bytes`, the least payload.
    """
    # A case's batch is global.
    together = dataclasses.replace(case, batch_size=case.batch_size * len(devices))
    built = ours.experiment(together, devices)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), next(ours.host_batches(built))
    )
    abstract = jax.eval_shape(built.initial_state)
    compiled = built.train_step().lower(abstract, batch, None).compile()
    found = targets.collectives(compiled.as_text())
    return {
        "devices": len(devices),
        "flops": compiled.cost_analysis()["flops"],
        "collectives": found,
        "payload_bytes": sum(moved for _, moved in found.values()),
        "gradient_bytes": 4 * count_parameters(abstract.params),
    }


def show(rows: list[dict]) -> str:
    lines = [
        f"{'devices':>7}{'GFLOP each':>12}{'extra':>9}{'collectives':>13}"
        f"{'payload MB':>12}{'of gradient':>13}{'ring, MB sent each':>20}"
    ]
    for row in rows:
        count = sum(number for number, _ in row["collectives"].values())
        extra = row["flops"] / rows[0]["flops"] - 1
        # With one device nothing moves, whatever the program says.
        payload = row["payload_bytes"] if row["devices"] > 1 else 0
        sent = 2 * (row["devices"] - 1) / row["devices"] * payload
        lines.append(
            f"{row['devices']:>7}{row['flops'] / 1e9:>12.3f}{100 * extra:>8.3f}%"
            f"{count:>13}{payload / 1e6:>12.3f}"
            f"{payload / row['gradient_bytes']:>13.5f}{sent / 1e6:>20.3f}"
        )
    return "\n".join(lines)


def main(argv=None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--variant", choices=cases.distilled(), default=cases.TINY_32)
    parser.add_argument("--batch_size", type=int, default=16, help="on each device")
    parser.add_argument(
        "--augmented", action=argparse.BooleanOptionalAction, default=True
    )
    parser.add_argument("--devices", default=",".join(map(str, DEVICES)))
    parser.add_argument("--json", type=Path, help="where the figures go")
    flags = parser.parse_args(argv)
    counts = sorted(map(int, flags.devices.split(",")))
    jax.config.update("jax_platforms", "cpu")
    with contextlib.suppress(RuntimeError):  # the caller has begun to use JAX
        jax.config.update("jax_num_cpu_devices", max(counts))
    if max(counts) > len(jax.devices()):
        parser.error(f"--devices: {max(counts)} of {len(jax.devices())} are there")
    case = Case(flags.variant, flags.batch_size, 10, augmented=flags.augmented)
    rows = [measure(case, jax.devices()[:count]) for count in counts]
    print(f"{flags.variant}, batch {flags.batch_size} on each device")
    print(show(rows))
    if flags.json:
        flags.json.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
