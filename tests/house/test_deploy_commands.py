"""docker/: the commands in images, manifests, scripts and their README, and the Slurm script's way through a job."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from pad_pipeline.workflows.cli import app
from tests.conftest import wait_for
from tests.house.test_deploy import DOCKER, ROOT, TEXTS, check_ray_start

SBATCH = DOCKER / "slurm/pad-build.sbatch"
PAD: Any = get_command(app)
"""The command line as click has it: it parses without running anything."""


def parse(words: list[str]) -> None:
    """Take a command line apart as `pad` would.

    Raises:
        click.UsageError: there is no such command or option, or a required one is missing.
    """
    command, context, rest = PAD, None, words
    while rest and rest[0] in getattr(command, "commands", {}):
        context = command.make_context(rest[0], [], parent=context, resilient_parsing=True)
        command, rest = command.commands[rest[0]], rest[1:]
    assert command is not PAD, f"no command of pad: {words}"
    command.make_context(words[0], rest, parent=context)


def commands(text: str) -> list[list[str]]:
    """The arguments of `pad` wherever a file runs it: by name, or as an image's entrypoint."""
    found = []
    names = "|".join(PAD.commands)
    joined = re.sub(r"\\\n\s*(# +)?", " ", text)
    for line in re.findall(rf"(?:\bpad|\bpad:[\w.-]+) +((?:{names})\b[^`\n]*)", joined):
        found.append(arguments(line))
    return found


def arguments(line: str) -> list[str]:
    """The words of a line of a shell, up to its end, a pipe or a comment."""
    words = shlex.split(line, comments=True)
    return words[: next((i for i, word in enumerate(words) if re.match(r"[|;&(]", word)), len(words))]


def test_every_command_of_pad_parses() -> None:
    """An option that was renamed: found at a user's, after half an hour of building images."""
    counts = {}
    for path in TEXTS:
        found = [words for words in commands(path.read_text()) if any(word.startswith("--") for word in words)]
        for words in found:  # what has no option is prose (`pad train`, pad build as a RayJob)
            parse(words)
        counts[path.relative_to(DOCKER).as_posix()] = len(found)
    runs = ("compose.yaml", "kubernetes/rayjob.yaml", "kubernetes/raycluster.yaml", "slurm/pad-build.sbatch")
    assert all(counts[name] == 1 for name in runs) and counts["README.md"] >= 6, counts


def test_every_command_that_the_documentation_does_not_run_parses() -> None:
    """What wants a GPU, a bucket or a network is fenced as `text`, and run by no test: an option that was renamed would
    stand there for ever."""
    counts = {}
    for path in sorted((ROOT / "docs").rglob("*.md")):
        blocks = re.findall(r"^```text\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
        joined = re.sub(r"\\\n\s*", " ", "\n".join(blocks))
        found = [arguments(line) for line in re.findall(r"^pad ([a-z].*)", joined, re.MULTILINE)]
        for words in found:
            parse(words)
        counts[path.name] = len(found)
    assert counts["gpu.md"] >= 3 and counts["cluster.md"] >= 3 and counts["storage.md"] >= 5, counts


def test_the_parser_of_this_test_refuses_what_pad_refuses() -> None:
    """A check that can't fail."""
    for words in (["build", "--image", "x", "--out", "y"], ["build", "--images", "x"], ["models", "fetch", "--all"]):
        with pytest.raises(Exception, match=r"No such option|Missing parameter"):
            parse(words)
    assert commands("docker run --rm pad:0.2.0 \\\n  build --images a --out b | tee log") == [
        ["build", "--images", "a", "--out", "b"]
    ]


def test_every_file_that_is_named_is_there() -> None:
    """docker/k8s/job.yaml in the README, where the file is called otherwise."""
    for path in [*TEXTS, ROOT / "README.md"]:
        for name in re.findall(r"\b(?:docker|tests|workflows)/[\w./-]+\.\w+", path.read_text()):
            assert (ROOT / name).is_file(), f"{path.name} names {name}"
    readme = (DOCKER / "README.md").read_text()
    for path in TEXTS:
        if path.name not in ("README.md", "Dockerfile"):
            assert path.relative_to(ROOT).as_posix() in readme, f"the README does not tell of {path.name}"


def test_object_storage_is_reached_by_what_the_images_hold() -> None:
    """s3:// in a manifest, and images without s3fs."""
    extras = re.findall(r"pip install '\.\[([\w,]+)\]'", (DOCKER / "Dockerfile").read_text())
    job = yaml.safe_load((DOCKER / "kubernetes/rayjob.yaml").read_text())["spec"]["entrypoint"]
    for scheme in re.findall(r"(\w+)://", job):
        assert all(scheme in extra.split(",") for extra in extras)


def test_slurm_script_is_right_as_far_as_shells_can_tell() -> None:
    """A slip of quoting, a directive behind the first command (which sbatch ignores), an option Ray does not have."""
    assert subprocess.run(["bash", "-n", SBATCH], capture_output=True).returncode == 0
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", SBATCH], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    text = SBATCH.read_text()
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line and line[0] != "#")
    directives = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert directives and max(directives) < first
    given = {lines[i].split()[1].partition("=")[0] for i in directives}
    assert {"--requeue", "--open-mode", "--signal", "--nodes", "--gpus-per-node", "--exclusive"} <= given
    joined = text.replace("\\\n", " ")
    shared = shlex.split(re.findall(r"ray_options=\((.*)\)", joined)[0])
    for line in re.findall(r"\bray start ([^&]*)&", joined):
        check_ray_start([word for word in shlex.split(line) if word.startswith("--")])
    check_ray_start(shared)
    assert "--dashboard-host" not in text and "--include-dashboard=false" in text


STUBS = {
    "srun": 'echo "srun $*" >> "$LOG"; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": 'echo "scontrol $*" >> "$LOG"; if [[ $1 == show ]]; then printf "%s\\n" n1 n2 n3; fi',
    "ray": 'echo "ray $*" >> "$LOG"; exec tail -f /dev/null',
    "python": """steps=$(grep -c "^ray start" "$LOG"); ((${*: -1} > 1 ? steps > 1 : steps)) || exit 1
echo "joined ${*: -1}" >> $LOG""",
    "sleep": "exec /bin/sleep 0.02",
    "pad": """trap 'kill %1; echo "pad stopped" >> "$LOG"; exit 143' TERM
echo "pad$(printf '|%s' "$@") token=${#RAY_AUTH_TOKEN}" >> "$LOG"
if [[ ${CODE:-} ]]; then exit "$CODE"; fi
tail -f /dev/null & wait""",
}


def test_slurm_array_makes_one_part_in_each_task(tmp_path: Path) -> None:
    """Catches a number of parts that changes when one task is repeated alone, and a task that stays dead."""
    script, parts = DOCKER / "slurm/pad-parts.sbatch", {"PAD_PARTS": "8", "SLURM_ARRAY_TASK_ID": "3"}
    parts |= {"SLURM_ARRAY_TASK_COUNT": "1"}  # as Slurm says for --array=3
    assert start(tmp_path, script, CODE="1", SLURM_ARRAY_JOB_ID="7", **parts).wait(timeout=30) == 1
    log = tmp_path / "log"
    told = "pad|build|--images|/shared/my photos|--out|/shared/shards|--models|paper|--part|3/8 token=0\n"
    assert log.read_text() == told
    log.unlink()
    assert at_the_end_of_its_time(tmp_path, script, SLURM_ARRAY_JOB_ID="7", **parts).endswith(
        "pad stopped\nscontrol requeue 7_3\n"
    )
    if shutil.which("shellcheck"):
        assert subprocess.run(["shellcheck", script]).returncode == 0


def start(folder: Path, script: Path = SBATCH, **environment: str) -> subprocess.Popen[str]:
    """The script, with stand-ins for Slurm, Ray and pad that write down how they were called."""
    for name, body in STUBS.items():
        stub = folder / name
        stub.write_text(f"#!/usr/bin/env bash\n{body}\n")
        stub.chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_NUM_NODES": "3", "SLURM_CPUS_PER_TASK": "4"}
    own = {"PATH": f"{folder}:{os.environ['PATH']}", "LOG": str(folder / "log"), "PAD_HEAD_IP": "10.0.0.1"}
    images = {"PAD_IMAGES": "/shared/my photos", "PAD_OUT": "/shared/shards"}
    return subprocess.Popen(
        ["bash", script], env=os.environ | job | own | images | environment, text=True, start_new_session=True
    )


def at_the_end_of_its_time(folder: Path, script: Path = SBATCH, **environment: str) -> str:
    """Start the script, send Slurm's signal once the build works, and return what the stand-ins wrote down."""
    job, log = start(folder, script, **environment), folder / "log"
    try:
        wait_for(lambda: log.exists() and "token=" in log.read_text(), job)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=30) == 0
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    return log.read_text()


def test_slurm_job_starts_head_workers_build_and_ends_with_its_code(tmp_path: Path) -> None:
    """A build before its nodes, a folder with a blank in its name, an exit code that Slurm never sees."""
    assert start(tmp_path, CODE="1").wait(timeout=30) == 1
    said = (tmp_path / "log").read_text().splitlines()
    head = next(i for i, line in enumerate(said) if line.startswith("ray start --head"))
    workers = next(i for i, line in enumerate(said) if line.startswith("ray start --address=10.0.0.1:6379"))
    build = next(i for i, line in enumerate(said) if line.startswith("pad|build"))
    assert head < said.index("joined 1") < workers < build
    assert any("--nodes=2 --ntasks=2 --exclude=n1 ray start" in line for line in said[:workers])
    assert said.index("joined 3") < build
    told = "pad|build|--images|/shared/my photos|--out|/shared/shards|--models|paper|--address|10.0.0.1:6379 token=64"
    assert said[build] == told
    assert not any("requeue" in line for line in said)


def test_slurm_job_whose_time_is_over_stops_the_build_and_queues_itself_again(tmp_path: Path) -> None:
    """A job that is killed at its limit and stays dead."""
    said = at_the_end_of_its_time(tmp_path).splitlines()
    assert said.index("pad stopped") < said.index("scontrol requeue 7")
