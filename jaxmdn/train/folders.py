"""A folder is replaced so that a process killed at any moment leaves the old one or the new one.

The old folder first becomes ``.NAME.previous`` beside its place, then the new one takes the place,
then the old one goes. Between the first step and the second :func:`find` knows where it is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def find(folder: Path) -> Path:
    """Where the folder's content is: beside its place if a process was killed replacing it."""
    previous = _previous(folder)
    return previous if previous.exists() and not folder.exists() else folder


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of ``folder``, if any, when the block ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield scratch
        scratch.chmod(0o755)  # mkdtemp's folders are private
        previous = _previous(folder)
        if folder.exists():
            shutil.rmtree(previous, ignore_errors=True)
            folder.replace(previous)
        scratch.replace(folder)
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _scratch(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def is_free(folder: Path, path: Path) -> bool:
    """Whether a folder holds nothing, but for what a killed :func:`write_text` left of a file."""
    if not folder.exists():
        return True
    return folder.is_dir() and not set(folder.iterdir()) - {_scratch(path)}


def write_text(path: Path, content: str) -> None:
    """Write a text file at once: it has its old content or its new one."""
    scratch = _scratch(path)
    scratch.write_text(content)
    os.replace(scratch, path)


@contextlib.contextmanager
def writing(function: str, folder: Path) -> Iterator[None]:
    """Turn what goes wrong on the disk into one error that names the folder."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:300]
        raise OSError(
            f"{function}: {folder} cannot be written: {reason}. What it held before is intact; "
            f"free space, or choose a folder that can be written."
        ) from error


@contextlib.contextmanager
def reading(function: str, folder: Path, remedy: str) -> Iterator[None]:
    """Turn what is wrong with a folder's files into one error that names the folder."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:300]
        raise ValueError(
            f"{function}: {folder} cannot be read, some file of it is missing, cut short or "
            f"changed: {reason}. {remedy}"
        ) from error
