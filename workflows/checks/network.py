"""Check what a run fetches or reaches over the network: Ray's cluster, Hugging Face's hub, and model files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from queue import Empty, SimpleQueue

from pad_pipeline.workflows.checks import Finding, Findings, State, gigabytes
from pad_pipeline.workflows.checks.machine import disk_space

HUB_TIMEOUT = 4.0  # seconds
RAY_TIMEOUT = 20.0  # seconds
OFFLINE = "HF_HUB_OFFLINE is set"
_JOIN_SCRIPT = """
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
nodes = [node for node in ray.nodes() if node["Alive"]]
print(json.dumps([len(nodes), ray.cluster_resources()]))
"""


def ray_cluster(address: str) -> Findings:
    """Check that Ray is installed, and that the cluster at `address` (empty for none) can be joined."""
    if find_spec("ray") is None:
        remedy = "pip install 'ray>=2.55'; or use `engine` local, which needs no Ray"
        yield Finding("ray", "problem", "not installed", remedy)
        return
    import ray

    yield Finding("ray", "ok", ray.__version__)
    if address:
        yield _cluster(address)


def _cluster(address: str) -> Finding:
    """Join the cluster in a process of its own, because Ray may write to standard error, wait for minutes, or abort."""
    from pad_pipeline.workflows.engine.ray_session import knock

    remedy = (
        "start one with `ray start --head`, or correct the address; if it wants a token, set RAY_AUTH_MODE=token "
        "and RAY_AUTH_TOKEN; the versions of Ray and Python must be those of the cluster"
    )
    try:
        knock(address)
        done = subprocess.run(
            [sys.executable, "-c", _JOIN_SCRIPT, address],
            capture_output=True,
            text=True,
            timeout=RAY_TIMEOUT,
            check=False,
        )
        if done.returncode:
            reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            return Finding("cluster", "problem", f"{address} can't be joined ({reason[:300]})", remedy)
        nodes, resources = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return Finding("cluster", "problem", f"{address} does not answer within {RAY_TIMEOUT:.0f} s", remedy)
    except (OSError, ValueError) as error:
        return Finding("cluster", "problem", f"{address} can't be reached ({error})", remedy)
    about = f"{address}: {nodes} nodes, {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"
    return Finding("cluster", "ok", about)


def hub_problem() -> str:
    """Return the reason why Hugging Face's hub can't be reached; empty if it answers."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return OFFLINE
    answers: SimpleQueue[str] = SimpleQueue()
    # In a daemon thread, because name lookups have no timeout.
    threading.Thread(target=lambda: answers.put(_request(constants.ENDPOINT)), daemon=True).start()
    try:
        return answers.get(timeout=HUB_TIMEOUT)
    except Empty:
        return f"no answer within {HUB_TIMEOUT:.0f} s"


def _request(url: str) -> str:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=HUB_TIMEOUT).close()
    except urllib.error.HTTPError:
        pass  # an answer, even an error, shows that the hub is there
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def hub(problem: Callable[[], str]) -> Findings:
    """Check that Hugging Face's hub answers. `problem` is `hub_problem`, which a cache calls only once."""
    from huggingface_hub import constants

    if problem() == OFFLINE:
        yield Finding("hub", "ok", f"not asked: {OFFLINE}")
    elif problem():
        remedy = "set a proxy (HTTPS_PROXY) or a mirror (HF_ENDPOINT); or fetch models elsewhere and copy HF_HOME"
        yield Finding("hub", "warning", f"{constants.ENDPOINT} can't be reached ({problem()})", remedy)
    else:
        yield Finding("hub", "ok", f"{constants.ENDPOINT} answers")


def model_files(models: str, problem: Callable[[], str]) -> Findings:
    """Report model files that are not on this machine, and check that the caches have space for them. `problem` is that
    of `hub`."""
    from huggingface_hub import constants

    from pad_pipeline.weights import cache_folder
    from pad_pipeline.workflows.models.catalog import MEGABYTES
    from pad_pipeline.workflows.models.files import files
    from pad_pipeline.workflows.models.settings import load_models

    chosen = files(load_models(models))
    absent = [part for part in chosen if part.path is None]
    missing = [part for part in absent if not _is_local(part.reference)]
    for part in absent:
        if part not in missing:
            remedy = "correct it in the TOML file of `models`"
            yield Finding(part.field, "problem", f"{part.reference}: there is no such file or folder", remedy)
    sizes = {part.field: MEGABYTES.get(part.reference) for part in missing}
    needed = sum(size or 0 for size in sizes.values()) * 10**6
    if missing:
        state: State = "problem" if problem() else "warning"
        least = "at least " if None in sizes.values() else ""
        names = ", ".join(field + (f" ({size / 1000:.2f} GB)" if size else "") for field, size in sizes.items())
        found = f"{len(missing)} of {len(chosen)} files are not here, {least}{gigabytes(needed)} in all: {names}"
        where = " with a network, and without HF_HUB_OFFLINE" if problem() else ", as a build would by itself"
        yield Finding("models", state, found, f"pad models fetch {models}{where}")
    elif not absent:
        remedy = f"pad models check {models} reads them, as a build does"
        yield Finding("models", "ok", f"all {len(chosen)} files of {models} are here", remedy)
    yield disk_space("hub's cache", constants.HF_HUB_CACHE, needed)
    yield disk_space("pad's cache", str(cache_folder()), needed)


def _is_local(reference: str) -> bool:
    """Return whether a reference names a file or folder on this machine, and neither a URL nor a hub name."""
    from pad_pipeline.weights import is_file_reference

    return "://" not in reference and (
        is_file_reference(reference) or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", reference)
    )
