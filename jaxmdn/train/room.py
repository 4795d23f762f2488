"""Room for compiled programs, which a process runs out of before its memory ends."""

from __future__ import annotations

from pathlib import Path

import jax

#: The share of the memory maps that Linux gives a process (65,530 unless somebody raised it) at
#: which programs are forgotten. Those of one ``fit`` with rows or a network of a new shape take
#: about a thousand; one too many, and the compiler ends the process.
SHARE = 0.5
MAPS, MOST = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")


def make_room() -> None:
    """Forget all compiled programs where half of the memory maps are taken.

    What is called again is compiled again. Other systems than Linux have no such limit.
    """
    if not (MAPS.exists() and MOST.exists()):
        return
    if MAPS.read_bytes().count(b"\n") > SHARE * int(MOST.read_text()):
        jax.clear_caches()
