"""What a container or a batch job may use is less than what the machine has."""

from __future__ import annotations

from pathlib import Path

import pytest

from pad_pipeline import machine


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of control groups, of which this process sees one; a machine with 64 cores."""
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    return tmp_path


def write(groups: Path, own: str, **files: str) -> None:
    """Write this process's line, and files of its groups: `job__cpu_max` is job/cpu.max."""
    (groups / "own").write_text(own)
    for name, text in files.items():
        path = groups.joinpath("cgroup", *name.split("__"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name.replace("_max", ".max")).write_text(text)


def test_limits_of_the_second_version_count_up_to_the_root(groups: Path) -> None:
    """A Slurm job's memory is limited above the group of its step. Catches a worker for each core of the node."""
    write(
        groups, "0::/job/step\n", job__memory_max="5000\n", job__step__memory_max="max\n", memory_max="max\n",
        job__step__cpu_max="250000 100000\n", job__cpu_max="max 100000\n",
    )  # fmt: skip
    assert machine.memory() == 5000 and machine.cores() == 2


def test_limits_of_the_first_version(groups: Path) -> None:
    """Catches a limit that is not read, and `unlimited` (a huge number, or -1) that is taken for one."""
    own = "4:memory:/pod\n3:cpu,cpuacct:/pod\n1:name=systemd:/\n"
    write(groups, own)
    (groups / "cgroup/memory/pod").mkdir(parents=True)
    (groups / "cgroup/cpu").mkdir()
    whole = machine.memory()
    (groups / "cgroup/memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    (groups / "cgroup/cpu/cpu.cfs_quota_us").write_text("-1\n")
    (groups / "cgroup/cpu/cpu.cfs_period_us").write_text("100000\n")
    assert (machine.memory(), machine.cores()) == (whole, 64)
    (groups / "cgroup/memory/pod/memory.limit_in_bytes").write_text("7000\n")
    (groups / "cgroup/cpu/cpu.cfs_quota_us").write_text("50000\n")  # a container sees the root alone
    assert (machine.memory(), machine.cores()) == (7000, 1)


def test_a_system_without_control_groups_has_its_own_limits(groups: Path) -> None:
    """macOS has no such files."""
    assert machine.cores() == 64 and machine.memory() > 1e8
