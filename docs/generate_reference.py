"""Write the reference: every public name on a page of its group, from the packages' ``__all__``."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jaxmdn

#: The order of the data's way; packages that are not named here come after these.
ORDER = ("heads", "components", "mixture", "losses", "nn", "train", "inference", "scoring")


def groups() -> dict[str, ModuleType]:
    """The public packages, each followed by the public modules in it."""
    found = {}
    for name in sorted(jaxmdn.__all__, key=lambda name: (*ORDER, name).index(name)):
        package = getattr(jaxmdn, name)
        if isinstance(package, ModuleType) and package.__name__ == f"jaxmdn.{name}":
            found[name] = package
            for short in exported(package):
                if isinstance(module := getattr(package, short), ModuleType):
                    found[f"{name}.{short}"] = module
    return found


class Name(NamedTuple):
    """A public name: where it is found, as users write it, and what it is."""

    path: str
    short: str
    value: Any


def public_names(module: ModuleType) -> Iterator[Name]:
    """The public names of a group; modules among them are groups of their own."""
    for short in exported(module):
        value = getattr(module, short)
        if isinstance(value, ModuleType):
            continue
        on_top = short in jaxmdn.__all__ and getattr(jaxmdn, short) is value
        yield Name(f"jaxmdn.{short}" if on_top else f"{module.__name__}.{short}", short, value)


def exported(module: ModuleType) -> list[str]:
    """``__all__``, or what a module without one defines itself."""
    names = getattr(module, "__all__", None)
    if names is None:
        own = vars(module).items()
        names = [
            name for name, value in own if getattr(value, "__module__", None) == module.__name__
        ]
    return sorted((name for name in names if not name.startswith("_")), key=str.lower)


def summary(value: Any) -> str:
    """The first sentence of a docstring, as the reference's tables show it."""
    text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    first = re.split(r"(?<=[^.][.?])\s+(?=[A-Z`:])", text)[0]
    return first if first.endswith((".", "?")) else f"{first.rstrip(':')}."


def text(module: ModuleType) -> str:
    """A module's docstring, whose tables and code are Markdown's but for roles and ``::``."""
    bare = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", inspect.getdoc(module) or "")
    return re.sub("::$", ":", bare, flags=re.MULTILINE)


def entry(name: Name) -> str:
    """The directive that documents a name."""
    if inspect.isclass(name.value):
        return f".. autoclass:: {name.path}\n   :members:\n"
    if callable(name.value):
        return f".. autofunction:: {name.path}\n"
    return f".. py:data:: {name.path}\n"


def page(group: str, module: ModuleType) -> str:
    """A group's page: its purpose, a table of its names, each of them in full."""
    names = list(public_names(module))
    lines = [f"# {group}", "", f"`{module.__name__}`: {text(module)}", ""]
    lines += ["```{eval-rst}", ".. list-table::", "   :widths: 35 65", ""]
    for name in names:
        what = summary(name.value) if callable(name.value) else "A constant."
        lines += [f"   * - :py:obj:`~{name.path}`", f"     - {what}"]
    lines += ["```", ""]
    for name in names:
        lines += [f"## `{name.short}`", "", "```{eval-rst}", entry(name), "```", ""]
    return "\n".join(lines)


def index(found: dict[str, ModuleType]) -> str:
    """The page of pages."""
    tree = "\n".join(group.replace(".", "_") for group in found)
    rows = "\n".join(
        f"| [{group}]({group.replace('.', '_')}.md) | {summary(module)} |"
        for group, module in found.items()
    )
    return (
        "# Reference\n\nEvery public name, from its docstring, on the page of its package. What "
        "stands at the top of jaxmdn, such as `jaxmdn.log_prob`, is shown so.\n\n"
        f"| package | what it holds |\n|---|---|\n{rows}\n\n"
        f"```{{toctree}}\n:hidden:\n\n{tree}\n```\n"
    )


def write(folder: Path) -> None:
    """Write all pages and their index; a page that has not changed keeps its time."""
    folder.mkdir(exist_ok=True)
    found = groups()
    pages = {group.replace(".", "_"): page(group, module) for group, module in found.items()}
    for name, text in {"index": index(found), **pages}.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
