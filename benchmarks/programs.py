"""What the train step compiles to for GPUs and TPUs that are not there.

    make programs
    make programs ARGS="--targets=v5e:4 --programs=train --top=20"

For each target and program: bytes moved (XLA's own count on TPUs; on GPUs operands and
results of every instruction), temporaries, collectives, seconds to compile, and what
follows by the data sheet: the time by the roofline, and the share of it that the
products take. Nothing is run or timed.
"""

import argparse
import dataclasses
import functools
import json
from pathlib import Path

import jax

from benchmarks import cases, ours, program_peers
from benchmarks.cases import Case
from deit_jax import targets
from deit_jax.data.augment import augment_batch
from deit_jax.models import cost, variants
from deit_jax.training import step

PROGRAMS = ("train", "train_augmented", "evaluate", "augment", *program_peers.MODULES)
SMALL = "deit_small_distilled_patch16_224"


def lower(program: str, case: Case, devices) -> tuple[jax.stages.Lowered, float]:
    """One program for `devices`, and the FLOPs of its products on each of them.

    Args:
      program: One of `PROGRAMS`. `augment` is the augmentation on the device, whatever
        the target; `train_augmented` has it where a run would, for TPUs on the host. A
        peer's name stands for its train step.
      case: Its batch size is that of each device.
    """
    if program in program_peers.MODULES:
        return program_peers.lower(program, case, devices)
    together = case.batch_size * len(devices)
    augmented = program in ("train_augmented", "augment")
    case = dataclasses.replace(case, batch_size=together, augmented=augmented)
    built = ours.experiment(case, devices)
    flops = cost.forward_flops(built.model) * together / len(devices)
    batch = shapes(next(ours.host_batches(built, resident=False)))
    state = jax.eval_shape(built.initial_state)
    if program == "augment":
        augment = functools.partial(
            augment_batch,
            augment_seed=built.student.augment_seed,
            settings=built.student.settings,
        )
        mapped = jax.pmap(augment, axis_name=step.AXIS, devices=devices)
        arguments = (batch[name] for name in ("image", "index", "view"))
        return mapped.lower(*arguments), 0
    if program == "evaluate":
        mapped = built.eval_step()
        return mapped.lower(state.params, batch["image"]), flops
    return built.train_step().lower(state, batch, None), 3 * flops


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def measure(program: str, case: Case, target: str, top: int) -> dict:
    """Compiles one program for a target; returns what is printed, for JSON."""
    name, chips = targets.parse(target)
    lowered, flops = lower(program, case, targets.devices(name, chips))
    compiled = targets.compile_program(lowered)
    seconds = compiled.roofline(targets.TARGETS[name], flops)
    return {
        "target": target,
        "program": program,
        "flops": flops,
        "bytes": compiled.bytes,
        "temporaries": compiled.temporaries,
        "memory": compiled.memory,
        "roofline_seconds": seconds,
        "utilisation": flops / targets.TARGETS[name].flops / seconds,
        "collectives": compiled.collectives,
        "compile_seconds": compiled.seconds,
        "moved": [
            {"kind": kind, "where": where, "bytes": moved}
            for (kind, where), moved in compiled.moved.most_common(top)
        ],
    }


def show(row: dict) -> str:
    """One line of the table, and what moves the most."""
    reduced = sum(moved for _, moved in row["collectives"].values())
    lines = [
        f"{row['target']:<7}{row['program']:<19}{row['flops'] / 1e12:7.2f}"
        f"{row['bytes'] / 1e9:8.1f}{row['temporaries'] / 1e9:8.2f}"
        f"{1e3 * row['roofline_seconds']:9.1f}{100 * row['utilisation']:7.0f} %"
        f"{reduced / 1e6:9.1f}{row['compile_seconds']:9.0f}"
    ]
    for part in row["moved"]:
        lines.append(f"    {part['bytes'] / 1e9:8.2f} {part['kind']} {part['where']}")
    return "\n".join(lines)


HEADER = (
    f"{'target':<7}{'program':<19}{'TFLOP':>7}{'GB':>8}{'temp GB':>8}{'roof ms':>9}"
    f"{'products':>9}{'sums MB':>9}{'compile':>9}"
)


def main(argv=None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--targets",
        type=cases.target_names,
        default="h100,v5e",
        help="h100, v5e:4, ...",
    )
    parser.add_argument("--programs", default="train,evaluate")
    parser.add_argument("--variant", choices=cases.distilled(), default=SMALL)
    parser.add_argument("--batch_size", type=int, default=128, help="on each chip")
    parser.add_argument("--num_classes", type=int, default=1000)
    parser.add_argument("--dtype", choices=variants.DTYPES, default="bfloat16")
    parser.add_argument("--attention", choices=variants.ATTENTIONS, default="auto")
    parser.add_argument("--top", type=int, default=0, help="what moves the most")
    parser.add_argument("--json", type=Path, help="where the figures go")
    flags = parser.parse_args(argv)
    programs = flags.programs.split(",")
    if unknown := set(programs) - set(PROGRAMS):
        parser.error(f"--programs: {unknown.pop()} is none of {', '.join(PROGRAMS)}")
    case = Case(
        flags.variant,
        flags.batch_size,
        flags.num_classes,
        dtype=flags.dtype,
        attention=flags.attention,
    )
    print(
        f"{flags.variant}, batch {flags.batch_size} a chip, {flags.dtype}, jax "
        f"{jax.__version__}\n{HEADER}",
        flush=True,
    )
    rows = []
    for target in flags.targets:
        for program in programs:
            try:
                rows.append(measure(program, case, target, flags.top))
            except targets.OutOfMemory as error:
                print(f"{target:<7}{program:<19}{error}", flush=True)
            else:
                print(show(rows[-1]), flush=True)
    if flags.json:
        about = {"jax": jax.__version__, "case": dataclasses.asdict(case)}
        flags.json.write_text(json.dumps(about | {"programs": rows}, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
