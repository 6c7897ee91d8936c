"""Runs a command: flags, environment, messages and exit codes."""

import contextlib
import difflib
import errno
import functools
import operator
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import app, flags, logging

from deit_jax import program
from deit_jax.errors import InputError
from deit_jax.training.signals import Stopped

# The exit code of a run that a signal has stopped: EX_TEMPFAIL of sysexits.h, "try
# again later".
STOPPED = 75

# Flags and fields of a config that are paths.
PATH_FLAGS = {"workdir", "out", "src", "data_dir", "logits_out", "teacher", "check"}
PATH_FIELDS = (
    "init_from",
    "dataset.name",
    "dataset.data_dir",
    "distillation.logits_dir",
    "distillation.teacher",
)
# What TensorFlow and gRPC log says nothing that a user can act on.
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}
QUIET |= {"GRPC_VERBOSITY": "ERROR"}
TUNABLES = "GLIBC_TUNABLES"
COMPILED = "JAX_COMPILATION_CACHE_DIR"
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

flags.disclaim_key_flags()  # they are the command's: --help shows them


def run(main, *, takes: str | None = None) -> None:
    """Runs an absl command; what the user can fix ends in one message and code 2.

    Args:
      main: Called with `argv`; returns the exit code, or None for 0.
      takes: What `argv[1:]` means; None for a command with flags only.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    _start_again()
    _keep_compiled_programs()
    _open_closed_streams()
    started = sys.modules["__main__"]
    started.__doc__ = program.as_started(started.__doc__ or "")  # what --help shows

    def guarded(argv):
        with reported():
            if argv[1:] and takes is None:
                raise InputError(
                    f"unexpected argument {argv[1]!r}: flags start with --"
                )
            return main(argv)

    app.run(guarded, flags_parser=_parse_flags)


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turns what the user can fix into a message and the exit code of `run`."""
    try:
        yield
    except InputError as error:
        fail(error)
    except Stopped as stopped:
        print(stopped, file=sys.stderr, flush=True)
        sys.exit(STOPPED)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        fail("too many open files: raise the limit, e.g. ulimit -n 1024")
    except (RuntimeError, AssertionError) as error:
        # Some of what JAX says of a missing device has no text at all.
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        if not last.endswith("xla_bridge.py"):
            raise
        platforms = os.environ.get("JAX_PLATFORMS", "")
        about = str(error).partition(" (set JAX_PLATFORMS")[0]
        fail(
            f"JAX finds no device for JAX_PLATFORMS={platforms}. {about} Unset it, or "
            "install JAX for that device (README, Install)."
        )


def _open_closed_streams() -> None:
    """Sends output that was closed (`>&-`) nowhere; prints names that are no text."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as we run
        getattr(sys, name).reconfigure(errors="backslashreplace")


def _start_again() -> None:
    """Starts this command again where its environment is not what it needs.

    File names are UTF-8 whatever the locale. And malloc takes huge pages: XLA allocates
    and frees large buffers at each step on CPU, which costs up to a third of the step
    in small ones. What has imported torch gains nothing.
    """
    wanted = {}
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        wanted["PYTHONUTF8"] = "1"
    huge = HUGE_PAGES.exists() and "[never]" not in HUGE_PAGES.read_text()
    if huge and TUNABLES not in os.environ and "torch" not in sys.modules:
        wanted[TUNABLES] = "glibc.malloc.hugetlb=1"
    if wanted:
        os.environ |= wanted
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _keep_compiled_programs() -> None:
    """Lets JAX cache what it compiles, unless JAX_COMPILATION_CACHE_DIR is set."""
    if COMPILED in os.environ:
        return
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        directory = home / "deit_jax/compiled"
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or one that cannot be written: no cache
        return
    os.environ[COMPILED] = str(directory)


def define_model_flags(weights: Sequence[str] = ("raw", "ema")) -> None:
    """Defines --workdir, --step and --weights, whose default is the first choice."""
    flags.DEFINE_string(
        "workdir", None, "The run directory of the model, or timm's weights and others."
    )
    flags.DEFINE_enum(
        "weights", weights[0], list(weights), "Raw parameters, or their moving average."
    )
    flags.DEFINE_integer("step", None, "The checkpoint's; the newest if not given.")


def values(*names: str) -> dict:
    """The values of these flags, as keyword arguments."""
    return {name: flags.FLAGS[name].value for name in names}


def require_at_least(low: int, **given: int) -> None:
    for name, value in given.items():
        if value < low:
            raise InputError(f"--{name}={value}: expected at least {low}.")


def numbers(
    name: str, texts: Sequence[str] | None, kind: type, example: str
) -> tuple | None:
    """The numbers of a list flag, as many ints or three floats; None: not given."""
    if texts is None:
        return None
    try:
        found = tuple(map(kind, texts))
    except ValueError:
        found = ()
    if not found or (kind is float and len(found) != 3):
        expected = "three" if kind is float else "whole"
        raise InputError(
            f"--{name}={','.join(texts)}: expected {expected} numbers, such as "
            f"{example}."
        )
    return found


def require(**examples: str) -> None:
    """Refuses a command without these flags; each has an example for the message."""
    for name, example in examples.items():
        if flags.FLAGS[name].value is None:
            raise InputError(f"--{name} is missing, e.g. --{name}={example}")


def fail(message) -> None:
    """Prints `error: message` to stderr and exits with code 2."""
    print(f"error: {program.as_started(str(message))}", file=sys.stderr, flush=True)
    sys.exit(2)


def _parse_flags(argv):
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            flags.FLAGS.config.keys()  # a file that does not load is reported here only
            _expand_home(flags.FLAGS.config)
        for name in PATH_FLAGS & set(flags.FLAGS):
            if isinstance(flags.FLAGS[name].value, str):
                flags.FLAGS[name].value = _at_home(flags.FLAGS[name].value)
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # orbax tells of every save
        return rest
    except flags.Error as error:
        fail(_shorten(str(error)))
    except (AttributeError, KeyError) as error:
        fail(_unknown_field(argv, error))
    except OSError as error:
        fail(f"cannot read the config file: {_shorten(str(error))}")


def _expand_home(config) -> None:
    """Replaces `~` in the paths of a config: no shell has done it."""
    for field in PATH_FIELDS:
        *section, name = field.split(".")
        fields = functools.reduce(operator.getitem, section, config)
        if isinstance(value := fields.get(name), str):
            kind, path = re.fullmatch(r"((?:[a-z]+:)?)(.*)", value, re.DOTALL).groups()
            fields[name] = kind + _at_home(path)


def _at_home(path: str) -> str:
    """Replaces `~` and `~user`; a folder of such a name is not made."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        fail(f"{path}: this user or home directory is not known. Give the whole path.")
    return expanded


def _shorten(text: str) -> str:
    """Returns the last line of a traceback that config_flags wraps into a message."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any(line.startswith("Traceback") for line in lines):
        return re.sub(r"^[\w.]*(Error|Exception): ", "", lines[-1])
    prefix = "Configuration is not available because of an earlier failure to load: "
    return " ".join(lines).replace(prefix, "")


def _unknown_field(argv: list[str], error: Exception) -> str:
    """Names the field of `--config.a.b=...` that does not exist, and its neighbours."""
    given = " ".join(argv[1:])
    file = re.search(r"(?:^| )--?config[= ](\S+)", given)
    for field in re.findall(r"(?:^| )--?config\.([\w.]+)", given) if file else ():
        # The flag itself has no value yet: its overrides are looked up first.
        node, where = flags.FLAGS["config"].parser.parse(file[1]), "config"
        for part in field.split("."):
            names = sorted(node.keys()) if hasattr(node, "keys") else []
            if part not in names:
                close = difflib.get_close_matches(part, names, n=1)
                hint = f" Did you mean {where}.{close[0]}?" if close else ""
                return (
                    f"unknown config field --config.{field}.{hint} "
                    f"Fields of {where}: {', '.join(names) or 'none, it is a value'}."
                )
            node, where = node[part], f"{where}.{part}"
    return f"the config does not load: {error}"
