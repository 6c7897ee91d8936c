"""GPUs and TPUs that are not there: XLA compiles for them, and what it made is read.

A compiled program says how many bytes it moves, what it keeps, and what its collectives
send; it cannot be run or timed. The packages of a target stay out of the environment
that trains: `make programs` installs what `python -m deit_jax.targets` prints.
"""

import collections
import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
import shlex
import textwrap
import time
from pathlib import Path

import jax
from jax.experimental import topologies

from deit_jax.errors import InputError

# What XLA asks of a GPU, beside the fields of each.
GPU = """
gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32
 shared_memory_per_block: 49152 threads_per_core_limit: 2048
 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
 registers_per_core_limit: 65536 registers_per_block_limit: 65536
 memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory:.0f} {gpu} }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "NVIDIA {name}"
"""
H100 = """cuda_compute_capability { major: 9 } core_count: 132 fpus_per_core: 128
 clock_rate_ghz: 1.98 l2_cache_size: 52428800 shared_memory_per_core: 233472
 shared_memory_per_block_optin: 232448"""
A100 = """cuda_compute_capability { major: 8 } core_count: 108 fpus_per_core: 64
 clock_rate_ghz: 1.41 l2_cache_size: 41943040 shared_memory_per_core: 167936
 shared_memory_per_block_optin: 166912"""


@dataclasses.dataclass(frozen=True)
class Target:
    """One chip by its data sheet."""

    name: str  # XLA's, of a TPU without the number of chips
    flops: float  # products of bfloat16 a second
    bandwidth: float  # bytes of its memory a second
    memory: float  # bytes
    gpu: str = ""
    topology: tuple[str, str] = ("", "")  # of four TPUs and of eight


TARGETS = {
    "h100": Target("H100 80GB HBM3", 989e12, 3.35e12, 80e9, H100),
    "a100": Target("A100-SXM4-80GB", 312e12, 2.04e12, 80e9, A100),
    "v4": Target("v4", 275e12, 1.23e12, 32e9, topology=("2x2x1", "2x2x2")),
    "v5e": Target("v5e", 197e12, 0.82e12, 16e9, topology=("2x2", "2x4")),
    "v6e": Target("v6e", 918e12, 1.64e12, 32e9, topology=("2x2", "2x4")),
}


def parse(text: str) -> tuple[str, int]:
    """`v5e:4` to ("v5e", 4); without a number one chip."""
    name, _, chips = text.partition(":")
    chips = chips or "1"
    if name not in TARGETS or chips not in ("1", "4", "8"):
        raise InputError(
            f"--target={text}: expected one of {', '.join(TARGETS)}, with :4 or :8 "
            "behind it for so many chips"
        )
    return name, int(chips)


def devices(name: str, chips: int = 1) -> list[jax.Device]:
    """Devices of a target, to compile for; call it before JAX looks for devices.

    It leaves the CPU as the only device to run on. Without a compiler: InputError.
    """
    _check_packages(name)
    jax.config.update("jax_platforms", "cpu")
    # Its programs cannot be read back for a device that is not there.
    jax.config.update("jax_enable_compilation_cache", False)
    # There is no GPU to tune on: products by cuBLAS's default algorithms.
    flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags} {_cuda()}"
    os.environ |= {
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_STDERR_LOG_LEVEL": "3",
    }
    target = TARGETS[name]
    if target.gpu:
        topology = topologies.get_topology_desc(
            "",
            platform="cuda",
            target_config=GPU.format_map(dataclasses.asdict(target)),
            topology=f"1x1x{chips}",
        )
    else:
        shape = target.topology[chips > 4]
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{target.name}:{shape}"
        )
    return list(topology.devices)[:chips]


def packages(name: str) -> tuple[list[str], list[str]]:
    """What compiles for a target: pip's requirements, and the modules to look for."""
    version = jax.__version__
    if TARGETS[name].gpu:
        plugins = [f"jax-cuda13-{part}=={version}" for part in ("plugin", "pjrt")]
        modules = ["jax_plugins.xla_cuda13", "jax_cuda13_plugin", "nvidia.cu13"]
        return [*plugins, "nvidia-cuda-nvcc"], [*modules, "nvidia.cudnn"]
    wanted = importlib.metadata.requires("jax")
    libtpu = next(each for each in wanted if each.startswith("libtpu"))
    return [libtpu.partition(";")[0].strip()], ["libtpu"]


def _check_packages(name: str) -> None:
    requirements, modules = packages(name)
    if not all(_found(module) for module in modules):
        torch = ", and the cuDNN that torch brings" if TARGETS[name].gpu else ""
        raise InputError(
            f"compiling for {name} needs packages that must stay out of the "
            f"environment that trains{torch}. Run\n  pip install --no-deps "
            f"--target=DIR {shlex.join(requirements)}\nand this command again with "
            "PYTHONPATH=DIR before it"
        )


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _cuda() -> str:
    """XLA's flag for the folder whose bin/ has ptxas, where there is one."""
    if not _found("nvidia.cu13"):
        return ""
    places = importlib.util.find_spec("nvidia.cu13").submodule_search_locations
    found = (place for place in places if Path(place, "bin/ptxas").exists())
    return f"--xla_gpu_cuda_data_dir={next(found, places[0])}"


@dataclasses.dataclass(frozen=True)
class Program:
    """What a compiled program does on each chip, read from its HLO."""

    moved: collections.Counter  # `traffic`
    xla_bytes: float | None  # XLA's own count, which only TPUs have
    temporaries: int  # bytes beside arguments and results
    memory: int  # bytes of arguments, results and temporaries
    collectives: dict[str, list[int]]
    seconds: float  # it took to compile

    @property
    def bytes(self) -> float:
        """Bytes that it reads and writes: XLA's own count where there is one."""
        return self.xla_bytes or sum(self.moved.values())

    def roofline(self, target: Target, flops: float) -> float:
        """Seconds it takes at least for so many `flops`, by products or by memory."""
        return max(flops / target.flops, self.bytes / target.bandwidth)


class OutOfMemory(InputError):
    """XLA has no program that fits into the device; it would need `memory` bytes."""

    def __init__(self, message: str):
        super().__init__(textwrap.shorten(message, 200, placeholder=" ..."))
        sizes = re.findall(r"(\d+\.?\d*) ?(b(?=ytes)|[KMGT](?=i?B?\b))", message)
        self.memory = max(
            (float(number) * 2 ** (10 * "bKMGT".index(unit)) for number, unit in sizes),
            default=math.inf,
        )


def compile_program(lowered: jax.stages.Lowered) -> Program:
    """Compiles for the devices that `lowered` belongs to, and reads what came out.

    Raises:
      OutOfMemory: It does not fit into their memory.
    """
    began = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(str(error)) from error
    seconds = time.monotonic() - began
    memory, text = compiled.memory_analysis(), compiled.as_text()
    return Program(
        moved=traffic(text),
        xla_bytes=(compiled.cost_analysis() or {}).get("bytes accessed"),
        temporaries=memory.temp_size_in_bytes,
        memory=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes  # the new state lies where the old one did
        + memory.temp_size_in_bytes,
        collectives=collectives(text),
        seconds=seconds,
    )


WIDTHS = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
WIDTHS |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
SHAPE = re.compile(r"\b(" + "|".join(WIDTHS) + r")\[([\d,]*)\]")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
INSTRUCTION = re.compile(
    r"\s+(?:ROOT )?%?([\w.\-]+) = ((?:\(.*?\)|\S+)) ([\w\-]+)\((.*?)\)(?:, |$)"
)
TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
INSIDE = re.compile(
    r"(?:body|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
# The last result of a call of cuBLAS or cuDNN, which is no result.
WORKSPACE = re.compile(r", s8\[\d+\](\{0\})?\)$")
# Instructions that move nothing by themselves.
FREE = {"bitcast", "get-tuple-element", "parameter", "tuple", "constant", "after-all"}
COLLECTIVES = (
    "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|"
    "collective-broadcast"
)


def traffic(hlo: str) -> collections.Counter:
    """Bytes that a program reads and writes: {(kind, where in the code): bytes}.

    Each instruction reads its operands and writes its results once. What a fusion or a
    custom call does inside is not counted, nor what a product may use as workspace. The
    body of a loop counts as often as it runs, a branch as if it were taken.

    Args:
      hlo: The optimized program, `jax.stages.Compiled.as_text()`.
    """
    bodies, entry, lines = {}, "", []  # lines by the name of their computation
    for line in hlo.splitlines():
        if match := COMPUTATION.match(line):
            lines = bodies[match[2]] = []
            entry = match[2] if match[1] else entry
        else:
            lines.append(line)
    moved: collections.Counter = collections.Counter()
    _add(moved, bodies, entry, 1)
    return moved


def _add(moved: collections.Counter, bodies: dict, name: str, times: int) -> None:
    sizes = {}
    for line in bodies[name]:
        if not (match := INSTRUCTION.match(line)):
            continue
        result, kind, op, operands = match.groups()
        if op == "custom-call":
            kind = WORKSPACE.sub(")", kind)
        sizes[result] = size(kind)
        if op in FREE:
            continue
        if op in ("while", "conditional", "call"):
            trips = TRIPS.search(line)
            inside = INSIDE.findall(line)
            for branches in re.findall(r"branch_computations=\{(.*?)\}", line):
                inside += re.findall(r"%?([\w.\-]+)", branches)
            for inner in inside:
                _add(moved, bodies, inner, times * (int(trips[1]) if trips else 1))
            continue
        where = re.search(r'op_name="([^"]*)"', line)
        label = re.sub(r"blocks_\d+", "blocks", where[1])[-90:] if where else ""
        read = sum(sizes.get(o, 0) for o in re.findall(r"%([\w.\-]+)", operands))
        moved[op, label] += times * (sizes[result] + read)


def size(kind: str) -> int:
    """Bytes of a type of HLO, such as `(f32[8,3]{1,0}, pred[])`."""
    return sum(
        WIDTHS[name] * math.prod(map(int, filter(None, dims.split(","))))
        for name, dims in SHAPE.findall(kind)
    )


def collectives(hlo: str) -> dict[str, list[int]]:
    """The collectives of a program: {kind: [count, bytes of the results]}."""
    found: dict[str, list[int]] = {}
    for kind, name in re.findall(rf" = (.*?) ({COLLECTIVES})(?:-start)?\(", hlo):
        counted = found.setdefault(name, [0, 0])
        counted[0] += 1
        counted[1] += size(kind)
    return found


if __name__ == "__main__":
    print(*sorted({each for name in TARGETS for each in packages(name)[0]}))
