"""The report as files: JSON, Markdown and pictures, each whole or not there."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import environment, pictures
from benchmarks.report import markdown


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside ``path`` and rename: whoever looks finds the old file or the whole new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write(report: dict[str, Any], folder: Path, suffix: str = "") -> list[Path]:
    """Write JSON, Markdown and pictures named after the device; return their paths.

    Args:
      report: from ``suite.run``.
      folder: created if absent.
      suffix: added to the names, for runs that are not the whole suite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = environment.slug(report["device"]) + suffix
    content = json.dumps(report, indent=1, allow_nan=False) + "\n"
    paths = [folder / f"{stem}.json"]
    replace_file(paths[0], lambda path: write_text(path, content))
    images = []
    for name, figure in pictures.draw(report).items():
        image = folder / f"{stem}-{name}.png"
        replace_file(image, functools.partial(pictures.save, figure))
        images.append(image)
    text = markdown(report, [image.name for image in images])
    paths.append(folder / f"{stem}.md")
    replace_file(paths[1], lambda path: write_text(path, text))
    return [*paths, *images]


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, whatever the platform's encoding."""
    path.write_text(text, encoding="utf-8")
