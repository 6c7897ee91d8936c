"""This project and a peer in alternating processes: rates, ratios, a table, JSON."""

import argparse
import dataclasses
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks import cases, timing
from benchmarks.cases import Case

OURS = "ours"
PEERS = {"timm": "benchmarks.timm_peer"}
# How a peer may run its model: as it is, through torch.compile, and with more search.
MODES = ("eager", "compile", "max-autotune")
# Not a mode of timm, and for inference only: our own exported file.
ONNX = "onnxruntime"
# For both sides, unless the caller's environment says otherwise: large pages for large
# buffers, which have to be asked for before a process starts.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def parse_flags(
    description: str,
    table: Mapping[str, Case],
    argv: Sequence[str] | None,
    *,
    modes: str,
    more: Mapping[str, dict] | None = None,
    **defaults,
) -> argparse.Namespace:
    """The flags that the comparing commands share.

    Args:
      modes: The peer's, unless they are given.
      more: Flags of one command, by name, as for `add_argument`.
      defaults: Others than those here.

    Returns:
      The flags, where `cases` are changed as they say, by name, and `modes` a list.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--peer", choices=(*PEERS, "none"), default="timm")
    parser.add_argument(
        "--modes", default=modes, help=f"of {', '.join((*MODES, ONNX))}"
    )
    parser.add_argument(
        "--cases",
        default=",".join(name for name in table if not name.endswith("_plain")),
        help=f"of {', '.join(table)}",
    )
    parser.add_argument("--pairs", type=int, default=5, help="runs of each side")
    parser.add_argument("--rounds", type=int, default=5, help="timed, in each run")
    parser.add_argument("--steps", type=int, default=1, help="in a round")
    parser.add_argument(
        "--parts",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="of a step, in the last pair",
    )
    parser.add_argument("--json", type=Path, help="where the figures go")
    changes = parser.add_argument_group("changes to every case")
    changes.add_argument("--variant", choices=cases.distilled())
    changes.add_argument("--batch_size", type=int)
    changes.add_argument("--dtype", choices=("float32", "bfloat16"))
    for name, settings in (more or {}).items():
        parser.add_argument(f"--{name}", **settings)
    parser.set_defaults(**defaults)
    flags = parser.parse_args(argv)
    if flags.pairs < 1 or flags.rounds < 1 or flags.steps < 1:
        parser.error("--pairs, --rounds and --steps are at least 1")
    names = ("variant", "batch_size", "dtype")
    changed = {name: getattr(flags, name) for name in names if getattr(flags, name)}
    flags.cases = {
        name: dataclasses.replace(table[name], **changed)
        for name in _chosen(parser, "--cases", flags.cases, table)
    }
    trains = any(case.training for case in table.values())
    known = MODES if trains else (*MODES, ONNX)
    flags.modes = _chosen(parser, "--modes", flags.modes, known)
    if flags.peer == "none":
        flags.modes = []
    return flags


def main(
    description: str,
    table: Mapping[str, Case],
    argv: Sequence[str] | None = None,
    *,
    modes: str = "eager,compile",
) -> dict:
    """A command that compares the cases of `table`; what it writes is returned."""
    flags = parse_flags(description, table, argv, modes=modes)
    result = {"machine": machine(), "cases": {}}
    print(result["machine"]["processor"], f"{result['machine']['cores']} cores")
    with tempfile.TemporaryDirectory() as caches:
        for name in flags.cases:
            found = compare_case(name, flags, flags.modes, caches)
            result["cases"][name] = found
            if flags.modes:
                result[f"ratio_{name}"] = found["ratio"]
            write(flags.json, result)
    return result


def write(path: Path | None, result: dict) -> None:
    """After each case: a stopped call has measured something."""
    if path:
        path.write_text(json.dumps(result, indent=1) + "\n")


def compare_case(
    name: str, flags: argparse.Namespace, modes: Sequence[str], caches: str
) -> dict:
    """`compare` for a case of `parse_flags`, in processes; prints what it found."""

    def run(side: str, case: Case, parts: bool) -> dict:
        settings = {name: getattr(flags, name) for name in ("peer", "rounds", "steps")}
        return child(side, case, caches=caches, parts=parts and flags.parts, **settings)

    found = compare(flags.cases[name], modes, pairs=flags.pairs, run=run)
    print("\n" + show(name, found), flush=True)
    return found


def _chosen(
    parser: argparse.ArgumentParser, flag: str, value: str, known: Iterable[str]
) -> list[str]:
    """The names in `value`, separated by commas; others than `known` are refused."""
    names = [name for name in value.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"{flag}: no {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def machine() -> dict:
    """What the figures were measured on; each run adds its device and versions."""
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    return {
        "processor": processor,
        "cores": timing.cores(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def compare(
    case: Case,
    modes: Sequence[str],
    *,
    pairs: int,
    run: Callable[[str, Case, bool], dict],
) -> dict:
    """Runs both sides `pairs` times, in turns.

    Args:
      modes: Of the peer; none times this project alone.
      run: (`ours` or a mode, case, whether to time the parts) -> what was measured.

    Returns:
      `runs` of each side, `rates` (median images/s of each), `ratios` (ours / theirs of
      each pair, by mode), `against` (the mode with the highest median) and `ratio`
      (the median of its ratios).
    """
    sides = [OURS, *modes]
    runs = {side: [] for side in sides}
    for pair in range(pairs):
        # Back and forth: what drifts over a pair favours no side.
        for side in sides if pair % 2 == 0 else sides[::-1]:
            runs[side].append(run(side, case, pair == pairs - 1))
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    rates = {
        side: statistics.median(one["images_per_sec"] for one in found)
        for side, found in runs.items()
    }
    ratios = {
        mode: [
            mine["images_per_sec"] / theirs["images_per_sec"]
            for mine, theirs in zip(runs[OURS], runs[mode], strict=True)
        ]
        for mode in modes
    }
    against = max(modes, key=rates.get, default=None)
    return {
        "case": dataclasses.asdict(case),
        "rates": rates,
        "ratios": ratios,
        "against": against,
        "ratio": statistics.median(ratios[against]) if modes else None,
        "runs": runs,
    }


def child(
    side: str,
    case: Case,
    *,
    peer: str,
    caches: str,
    rounds: int,
    steps: int,
    parts: bool,
) -> dict:
    """Measures one side in a process of its own.

    Args:
      side: `ours` or a mode of the peer.
      caches: A directory for what torch compiles: only the first run of a mode does.

    Raises:
      SystemExit: It failed; says why.
    """
    modules = {OURS: "benchmarks.ours", ONNX: "benchmarks.onnx_peer"}
    command = [sys.executable, "-m", modules.get(side, PEERS.get(peer))]
    command += [*case.flags, f"--rounds={rounds}", f"--steps={steps}"]
    command += [] if side in modules else [f"--mode={side}"]
    command += ["--parts"] if parts and case.training else []
    environment = HUGE_PAGES | os.environ
    environment |= {
        "OMP_NUM_THREADS": str(timing.cores()),
        "TORCHINDUCTOR_CACHE_DIR": caches,
    }
    done = subprocess.run(command, text=True, capture_output=True, env=environment)
    if done.returncode:
        sys.exit(f"{done.stderr}error: failed: {shlex.join(command)}")
    return json.loads(done.stdout.splitlines()[-1])


def show(name: str, found: dict) -> str:
    case, ours = found["case"], found["runs"][OURS]
    what = "train step" if case["training"] else "logits"
    augmented = "" if case["augmented"] or not case["training"] else ", not augmented"
    lines = [
        f"{name}: {case['variant']}, batch {case['batch_size']}, {case['dtype']}, "
        f"{what}{augmented}, {ours[0]['device']}",
        f"{'':<14}{'images/s':>10}{'least':>10}{'most':>10}{'peak MiB':>10}"
        f"{'compile s':>10}{'ours/theirs':>13}",
    ]
    for side, runs in found["runs"].items():
        rates = [run["images_per_sec"] for run in runs]
        line = f"{side:<14}{found['rates'][side]:>10.1f}"
        line += f"{min(rates):>10.1f}{max(rates):>10.1f}"
        line += f"{max(run['peak_memory_bytes'] for run in runs) / 2**20:>10.0f}"
        line += f"{max(run['compile_seconds'] for run in runs):>10.1f}"
        if ratios := found["ratios"].get(side):
            line += f"{statistics.median(ratios):>8.3f} ({min(ratios):.3f} .. "
            line += f"{max(ratios):.3f})"
        lines.append(line)
    used = statistics.median(run["utilisation"] for run in ours)
    limit = statistics.median(run["matmul_flops_per_sec"] for run in ours)
    lines.append(
        f"ours computes at {100 * used:.1f} % of the {limit / 1e9:,.0f} GFLOP/s of a "
        f"large {case['dtype']} matrix product"
    )
    for side, runs in found["runs"].items():
        if parts := runs[-1]["parts"]:
            step = statistics.median(runs[-1]["seconds"])
            shares = (
                f"{part} {1e3 * seconds:.1f} ms ({100 * seconds / step:.1f} %)"
                for part, seconds in parts.items()
            )
            lines.append(f"{side}, step {1e3 * step:.1f} ms: " + ", ".join(shares))
    return "\n".join(lines)
