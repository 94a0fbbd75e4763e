"""Check this machine: versions, GPU, memory, limits of open files, disk space."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

from pad_pipeline.packages import OPTIONAL, installed
from pad_pipeline.workflows.checks import Finding, Findings, gigabytes

SHARED_MEMORY = 2 << 30
"""Bytes that /dev/shm should have, enough for a few shards of 512 photographs. With less, Ray may use a slow disk."""
MIN_FREE = 1 << 30
"""Free bytes that a folder to write into must have; less is a problem."""
RUN_FREE = 20 << 30
"""Free bytes that the folder of a run should have; less is a warning."""
GPU_MEMORY = 5 << 30
"""Bytes of GPU memory that all official models need together: 4.5 GB, measured for `plus` with one image in bfloat16
(benchmarks/results/memory-cpu.md), and the memory of CUDA and its libraries. A batch that needs more is halved."""
OPEN_FILES = 4096
"""Files that a process should be allowed to have open. Ray with many workers needs so many."""


def _requirements() -> tuple[str, list[str]]:
    """Return the versions of Python and of packages that pyproject.toml, or else the installed pad, requires."""
    beside = Path(__file__).parents[3] / "pyproject.toml"
    if beside.is_file():
        project = tomllib.loads(beside.read_text())["project"]
        return project["requires-python"], project["dependencies"]
    needed = [text for text in requires("pad-pipeline") or [] if "extra ==" not in text]
    return metadata("pad-pipeline")["Requires-Python"], needed


def packages() -> Findings:
    """Check that Python and each package have a version that pad supports."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    needed_python, needed = _requirements()
    python = platform.python_version()
    if python in SpecifierSet(needed_python):
        yield Finding("python", "ok", f"{python}, {sys.executable}")
    else:
        remedy = "make an environment with a newer Python"
        yield Finding("python", "problem", f"{python}, and {needed_python} is needed", remedy)
    good = []
    for requirement in map(Requirement, needed):
        name, specifier = requirement.name, requirement.specifier
        try:
            present = version(name)
        except PackageNotFoundError:
            present = ""
        if present and specifier.contains(present, prereleases=True):
            good.append(f"{name} {present}")
        else:
            problem = f"{present or 'not installed'}, and {specifier} is needed"
            yield Finding(name, "problem", problem, f"pip install --upgrade '{name}{specifier}'")
    yield Finding("packages", "ok", ", ".join(good))


def gpu() -> Findings:
    """Report CPU cores and GPUs; check that torchvision fits torch, that torch can use the GPUs, and GPU memory."""
    import torch

    from pad_pipeline.machine import cores

    yield Finding("cpu", "ok", f"{cores()} cores for this process")
    try:
        import torchvision  # noqa: F401 - its import fails if it was built for another torch
    except (ImportError, RuntimeError) as error:
        remedy = "install torch and torchvision together, from the same index"
        yield Finding("torchvision", "problem", f"it does not go with torch {torch.__version__} ({error})", remedy)
    cuda = torch.version.cuda
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield _device(index, torch.cuda.get_device_properties(index), f"CUDA {cuda}, driver {_driver()}")
    elif Path("/dev/nvidiactl").exists():
        problem = f"there is one, and torch {torch.__version__} ({f'for CUDA {cuda}' if cuda else 'without CUDA'})"
        remedy = "install a torch with CUDA, and a driver that is new enough for it; nvidia-smi shows the driver"
        yield Finding("gpu", "problem", f"{problem} can't use it", remedy)
    else:
        remedy = "for more than a try, use a machine with a GPU; in a container, give it one with --gpus all"
        yield Finding("gpu", "warning", "none: the models run on the CPU, in float32, many times slower", remedy)


def _device(index: int, device: Any, versions: str) -> Finding:
    name, about = f"gpu {index}", f"{device.name}, {gigabytes(device.total_memory)}, {versions}"
    if (device.major, device.minor) < (8, 0):
        remedy = "expect a slow run: computing in bfloat16 needs Ampere (8.0) or newer"
        return Finding(name, "warning", f"{about}: no bfloat16", remedy)
    if device.total_memory < GPU_MEMORY:
        remedy = "use smaller models (pad models list)"
        return Finding(name, "warning", f"{about}: too small for all official models at once", remedy)
    return Finding(name, "ok", f"{about}, bfloat16")


def _driver() -> str:
    path = Path("/proc/driver/nvidia/version")
    match = re.search(r"\s(\d+\.[\d.]+)\s", path.read_text()) if path.is_file() else None
    return match[1] if match else "unknown"


def shared_memory() -> Findings:
    """Check the size of /dev/shm, where Ray keeps shards on their way from worker to worker."""
    where = Path("/dev/shm")
    if not where.is_dir():
        yield Finding("shared memory", "ok", "this system has no /dev/shm; Ray uses files")
        return
    size = shutil.disk_usage(where).total
    if size < SHARED_MEMORY:
        remedy = "give the container more: docker run --shm-size 8g, shm_size in compose; or use `engine` local"
        problem = f"{gigabytes(size)} in /dev/shm: Ray's object store would use a disk, which is slow"
        yield Finding("shared memory", "warning", problem, remedy)
    else:
        yield Finding("shared memory", "ok", f"{gigabytes(size)} in /dev/shm")


def open_files() -> Findings:
    """Check the number of files that a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < OPEN_FILES:
        remedy = f"ulimit -n {hard if hard > soft else 65536}; for a container docker run --ulimit nofile=65536"
        yield Finding("open files", "warning", f"{soft} at most, few for Ray with many workers", remedy)
    else:
        yield Finding("open files", "ok", f"{soft if soft >= 0 else 'any number'} at most")


def disk_space(check: str, where: str, needed: int = 0, warn_below: int = 0) -> Finding:
    """Check that a folder can be written and has free space. The space behind a URL is not checked.

    Args:
        check: the name of the check.
        where: the folder, which need not exist yet, or a URL.
        needed: bytes that will be written; too little space for them is a problem.
        warn_below: less free space, in bytes, is a warning.
    """
    from pad_pipeline.storage import PACKAGES, is_url, url_problem

    if is_url(where):
        if problem := url_problem(where):
            return Finding(check, "problem", f"{where}: {problem}", "name one of these, or a local folder")
        name = PACKAGES.get(where.partition("://")[0])
        if name and not installed(name):
            return Finding(check, "problem", f"{where}: {name} is not installed", OPTIONAL[name].install)
        return Finding(check, "ok", f"{where}: not asked")
    folder = Path(where).expanduser().absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        rule = f"{existing} is no folder that this user can write into"
        return Finding(check, "problem", rule, "name another one, or have its owner changed")
    free = shutil.disk_usage(existing).free
    space = f"{gigabytes(free)} free in {folder}"
    if free < needed + MIN_FREE:
        more = f", and {gigabytes(needed)} are needed" if needed else ""
        return Finding(check, "problem", space + more, "make room, or name a folder on a larger disk")
    if free < warn_below:
        remedy = "`pad build` with `dry_run` says how much a run will write; make room if that is more"
        return Finding(check, "warning", space, remedy)
    return Finding(check, "ok", space)


def optional_packages() -> Findings:
    """Report for each optional package its purpose, and whether it is installed."""
    programs = {name: (installed(name), *package) for name, package in OPTIONAL.items()}
    programs["java"] = (bool(shutil.which("java")), "METEOR and SPICE", "install a Java runtime, 8 or newer")
    for name, (here, use, install) in programs.items():
        if here:
            yield Finding(name, "ok", f"here, for {use}")
        else:
            yield Finding(name, "ok", f"not installed; only needed for {use}", install)
