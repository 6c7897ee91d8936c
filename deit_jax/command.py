"""What every command does before and around its `main`."""

import contextlib
import difflib
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags, logging

from deit_jax.errors import InputError
from deit_jax.training.signals import Stopped

# Of a run that a signal has stopped: sysexits.h's EX_TEMPFAIL, "try again later". Not
# 128 + the signal, which is that of a process that died of it and saved nothing.
STOPPED = 75

TUNABLES = "GLIBC_TUNABLES"
COMPILED = "JAX_COMPILATION_CACHE_DIR"
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def run(main, *, takes: str | None = None) -> None:
    """Runs an absl command; what the user can mend is printed without a traceback.

    Args:
      main: Called with `argv`; returns the exit code, or None for 0.
      takes: What `argv[1:]` means; None: nothing, the command has flags only.

    Exits with 2 and one message on stderr for an `InputError`, a config file that is
    missing or refuses its argument, and a config field that does not exist; with
    `STOPPED` for a run that goes on when it is started again.
    """
    # The C++ logs of TensorFlow and gRPC say nothing that a user can act on.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # announces itself otherwise
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    _in_huge_pages()
    _keep_compiled_programs()

    # The name of a file may be no text, and is printed all the same.
    sys.stdout.reconfigure(errors="backslashreplace")

    def guarded(argv):
        with reported():
            if len(argv) > 1 and takes is None:
                raise InputError(
                    f"unexpected argument {argv[1]!r}: flags start with --"
                )
            return main(argv)

    app.run(guarded, flags_parser=_parse_flags)


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turns what the user can mend into a message and the exit of `run`."""
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


def _in_huge_pages() -> None:
    """Starts this command again with malloc in huge pages, unless it has been said how.

    XLA takes and gives back large buffers at each step on CPU; in pages of 4 KiB that
    costs up to a third of it. glibc reads its tunables once, when a process starts.
    Whoever sets GLIBC_TUNABLES, to nothing even, is left alone. So are the commands of
    the teacher: to them it makes no difference, and torch would be imported twice.
    """
    if TUNABLES in os.environ or sys.platform != "linux" or "torch" in sys.modules:
        return
    libc, version = platform.libc_ver()
    try:
        allowed = "[never]" not in HUGE_PAGES.read_text()
    except OSError:
        return
    # The tunable came with glibc 2.35; older ones ignore it.
    if libc == "glibc" and tuple(map(int, version.split("."))) >= (2, 35) and allowed:
        os.environ[TUNABLES] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _keep_compiled_programs() -> None:
    """Lets JAX keep what it compiles in its own cache: a second start takes it thence.

    Whoever sets JAX_COMPILATION_CACHE_DIR, to nothing even, is left alone.
    """
    if COMPILED in os.environ:
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = home / "deit_jax/compiled"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written: without
        return
    os.environ[COMPILED] = str(directory)


def fail(message) -> None:
    """Prints `error: message` to stderr and exits with code 2."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)


def _parse_flags(argv):
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            flags.FLAGS.config.keys()  # a file that does not load is reported here only
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # orbax tells of every save
        return rest
    except flags.Error as error:
        fail(_shorten(str(error)))
    except (AttributeError, KeyError) as error:
        fail(_unknown_field(argv, error))
    except OSError as error:
        fail(f"cannot read the config file: {_shorten(str(error))}")


def _shorten(text: str) -> str:
    """The last line of a traceback that config_flags wraps into its own message."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if any(line.startswith("Traceback") for line in lines):
        return re.sub(r"^[\w.]*(Error|Exception): ", "", lines[-1])
    return " ".join(lines).replace(
        "Configuration is not available because of an earlier failure to load: ", ""
    )


def _unknown_field(argv: list[str], error: Exception) -> str:
    """Names the field of `--config.a.b=...` that does not exist, and its neighbours."""
    arguments = " ".join(argv[1:])
    file = re.search(r"(?:^| )--?config[= ](\S+)", arguments)
    fields = re.findall(r"(?:^| )--?config\.([\w.]+)", arguments)
    if not file or not fields:
        return f"the config does not load: {error}"
    # The flag itself has no value yet: its overrides are looked up first.
    config = flags.FLAGS["config"].parser.parse(file[1])
    for field in fields:
        node, path = config, ["config"]
        for part in field.split("."):
            names = sorted(node.keys()) if hasattr(node, "keys") else []
            if part not in names:
                where = ".".join(path)
                close = difflib.get_close_matches(part, names, n=1)
                hint = f" Did you mean {where}.{close[0]}?" if close else ""
                return (
                    f"unknown config field --config.{field}.{hint} "
                    f"Fields of {where}: {', '.join(names) or 'none, it is a value'}."
                )
            node = node[part]
            path.append(part)
    return f"the config does not load: {error}"
