"""The command line: ``jaxmdn demo``, ``fit``, ``predict``, ``report``, ``export``, ``bench``."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmdn import __version__
from jaxmdn.cli import config
from jaxmdn.cli.errors import UsageError

COMMANDS = ("demo", "fit", "predict", "report", "export", "bench")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (2: a problem the user can fix)."""
    parser = argparse.ArgumentParser(
        prog="jaxmdn",
        description="Mixture density networks: predict a distribution, not a number.",
        epilog="Compiled programs are kept in $XDG_CACHE_HOME/jaxmdn (or ~/.cache/jaxmdn).",
    )
    parser.add_argument("--version", action="version", version=f"jaxmdn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    argv = sys.argv[1:] if argv is None else argv
    try:
        # A command named outright needs no more than its own packages.
        for name in argv[:1] if argv and argv[0] in COMMANDS else COMMANDS:
            importlib.import_module(f"jaxmdn.cli.{name}").add_parser(commands)
    except ImportError as error:
        print(
            f"jaxmdn: the command line needs {error.name or error}; install it with: "
            f"pip install 'jaxmdn[cli]'",
            file=sys.stderr,
        )
        return 2
    try:
        arguments = config.expand(parser, list(argv))
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # one line, without the source location
            _keep_compiled(arguments.command)
            arguments.run(arguments)
    except (UsageError, OSError, ValueError) as error:
        print(f"jaxmdn {argv[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\njaxmdn {argv[0]}: interrupted", file=sys.stderr)
        return 130
    return 0


def cache_folder() -> Path | None:
    """Where compiled programs are kept, one folder a kind of processor; None: nowhere."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    flags = Path("/proc/cpuinfo")
    try:
        lines = flags.read_text().splitlines() if flags.exists() else []
        # A program compiled for one processor may crash another that shares the home folder.
        machine = [
            platform.machine(),
            platform.processor(),
            *[x for x in lines if "flags" in x][:1],
        ]
        base = base if base.is_absolute() else Path.home() / ".cache"
        folder = base / "jaxmdn" / hashlib.sha256("".join(machine).encode()).hexdigest()[:12]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK) else None


def _keep_compiled(command: str) -> None:
    """Let JAX keep what it compiles for the next run, but for ``bench``, which times compiling."""
    import jax

    if command == "bench":
        jax.config.update("jax_enable_compilation_cache", False)
    elif not os.environ.get("JAX_COMPILATION_CACHE_DIR"):  # the user's own choice stays
        folder = cache_folder()
        if folder is not None:
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"note: {message}", file=sys.stderr)
