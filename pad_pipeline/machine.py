"""The CPU cores and the memory that this process may use: the machine's, or less in a container or a batch job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def cores() -> int:
    """Return the number of CPU cores that this process may use, at least 1; a share of a core is left out."""
    found = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for group in _groups("cpu"):
        with suppress(OSError, ValueError):  # there is no such file, or it says `max`
            quota, period = (group / "cpu.max").read_text().split()
            found = min(found, int(quota) / int(period))
        with suppress(OSError, ValueError):
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:
                found = min(found, int(quota) / int(period))
    return max(1, int(found))


def memory() -> int:
    """Return the bytes of memory that this process may use."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for group in _groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):
                found = min(found, int((group / name).read_text()))
    return found


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups of this process that can limit `cpu` or `memory`, up to the roots, by
    both versions of Linux's cgroups. A container may see only the roots."""
    with suppress(OSError):
        for line in _OWN_CGROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            root = _CGROUPS / controller if controllers else _CGROUPS
            group = root / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))
