"""Images from anywhere, shards to anywhere: lists of URLs, tars, an object store, shards of an earlier run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec
import pytest

from pad_pipeline.miniature.files import World
from pad_pipeline.shards import lock
from pad_pipeline.shards.reader import open_shards
from tests.conftest import data, wait_for
from tests.runs.conftest import living

Pad = Callable[..., Any]
PAD = Path(sys.executable).with_name("pad")


@pytest.fixture(scope="module")
def common(models_toml: Path) -> list[object]:
    return ["--models", models_toml, "--view-size", 112, "--threads", 1, "--engine", "local"]


@pytest.fixture
def google() -> Iterator[str]:
    """A bucket of a Google Cloud Storage server on this machine."""
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        host, port = server._api._httpd.socket.getsockname()
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://{host}:{port}")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # else it asks for the kind of bucket by TLS
        yield "gs://bucket"
    server.stop()


@pytest.fixture
def site(world: World) -> Iterator[str]:
    """The ten scenes on a web server."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(world.images)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def hub(world: World) -> Iterator[str]:
    """The part of the Hugging Face hub's API that reading a dataset takes, with the scenes as `artist/scenes`."""
    from flask import Flask, jsonify, request, send_file
    from werkzeug.serving import make_server

    app = Flask(__name__)
    api = "/api/datasets/artist/scenes"

    def entry(path: Path) -> dict[str, object]:
        name = f"images/{path.name}"
        return {"type": "file", "path": name, "size": path.stat().st_size, "oid": f"{hash(name):040x}"[-40:]}

    folder = {"type": "directory", "path": "images", "size": 0, "oid": "0" * 40}
    for rule in (api, f"{api}/revision/main"):
        app.add_url_rule(rule, rule, lambda: jsonify(id="artist/scenes", sha="0" * 40, siblings=[]))
    app.add_url_rule(f"{api}/tree/main", "root", lambda: jsonify([folder]))
    app.add_url_rule(f"{api}/tree/main/images", "tree", lambda: jsonify([*map(entry, world.images.iterdir())]))

    @app.post(f"{api}/paths-info/main")
    def paths_info() -> Any:
        asked = request.form.getlist("paths") or request.get_json()["paths"]
        known = {f"images/{path.name}": entry(path) for path in world.images.iterdir()} | {"images": folder}
        return jsonify([known[name] for name in asked if name in known])

    @app.get("/datasets/artist/scenes/resolve/main/images/<name>")
    def resolve(name: str) -> Any:
        return send_file(world.images / name, conditional=True)  # conditional: ranges are answered

    @app.errorhandler(404)
    def absent(_: Exception) -> Any:
        return jsonify(error="not found"), 404, {"X-Error-Code": "EntryNotFound"}  # as the hub's own server says it

    server = make_server("127.0.0.1", 0, app, threaded=True)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def found(folder: object) -> dict[str, tuple[str, str, int]]:
    """Image id -> sha256 of its file, status, number of regions."""
    import hashlib

    shards = open_shards(str(folder))
    return {
        row["id"]: (
            hashlib.sha256(shards.sample(name, row).image).hexdigest() if row["status"] != "failed" else "",
            row["status"],
            row["regions"],
        )
        for name, row in shards.rows()
    }


@pytest.fixture(scope="module")
def whole(world: World, common: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes built from their folder, four in a shard."""

    out = tmp_path_factory.mktemp("whole") / "out"
    arguments = [
        "build",
        "--images",
        world.llava,
        "--image-root",
        world.images,
        *common,
        "--shard-size",
        4,
        "--out",
        out,
    ]
    done = subprocess.run([str(word) for word in [PAD, *arguments]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_a_list_of_urls(world: World, whole: Path, site: str, common: list[object], pad: Pad, tmp_path: Path) -> None:
    """What a crawl gives: URLs and captions. The same images give the same regions; a dead link is a failed row."""
    records = json.loads(world.llava.read_text())
    path = tmp_path / "list.jsonl"
    lines = [
        {"id": record["id"], "url": f"{site}/{record['image']}", "caption": record["conversations"][1]["value"]}
        for record in records
    ]
    path.write_text("\n".join(map(json.dumps, [*lines, {"id": "gone", "url": f"{site}/gone.png", "caption": ""}])))
    command = ["build", "--images", path, *common, "--shard-size", 4, "--private-addresses", "--out", tmp_path / "out"]
    done = pad(*command)
    assert done.code == 0, done.err
    expected = found(whole)
    assert found(tmp_path / "out") == expected | {"gone": ("", "failed", 0)}
    failed = [row for _, row in open_shards(tmp_path / "out").rows() if row["status"] == "failed"]
    assert [(row["stage"], "nothing at this URL" in row["reason"]) for row in failed] == [("decode", True)]
    assert pad(*command).code == 0
    assert pad("verify", tmp_path / "out", "--deep").code == 0


@pytest.mark.long
def test_from_one_bucket_of_google_into_another(
    world: World, whole: Path, google: str, common: list[object], tmp_path: Path
) -> None:
    """gs:// through gcsfs, for images and for shards: the same shards as on a disk."""
    files = fsspec.filesystem("gs", skip_instance_cache=True)
    files.put(str(world.images), "bucket/images", recursive=True)
    for images, out in (f"{google}/images", f"{google}/out"), (world.images, tmp_path / "disk"):
        words = [PAD, "build", "--images", images, *common, "--shard-size", 4, "--out", out]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    files.invalidate_cache()
    files.get("bucket/out", str(tmp_path / "copy"), recursive=True)
    assert data(tmp_path / "copy") == data(tmp_path / "disk")


@pytest.mark.long
def test_a_dataset_of_the_hub(world: World, whole: Path, hub: str, common: list[object], tmp_path: Path) -> None:
    """hf:// by the hub's own client: a folder of a dataset repository is listed and read like a folder of the disk.

    Catches a listing that loses the repository from its paths, so that no image opens."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    shards = {}
    for name, images in ("hub", "hf://datasets/artist/scenes/images"), ("disk", world.images):
        words = [PAD, "build", "--images", images, *common, "--shard-size", 4, "--out", tmp_path / name]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        shards[name] = found(tmp_path / name)
    assert shards["hub"] == shards["disk"]
    assert {status for _, status, _ in shards["hub"].values()} <= {"ok", "empty"}


def test_webdataset_tars(world: World, whole: Path, common: list[object], pad: Pad, tmp_path: Path) -> None:
    """Tars of images and captions are read in place, at their offsets."""
    records = json.loads(world.llava.read_text())
    for number in range(2):
        with tarfile.open(tmp_path / f"part-{number}.tar", "w") as tar:
            for record in records[number * 5 : number * 5 + 5]:
                caption = tmp_path / "caption.txt"
                caption.write_text(record["conversations"][1]["value"])
                tar.add(world.images / record["image"], f"{record['id']}.png")
                tar.add(caption, f"{record['id']}.txt")
    out = tmp_path / "out"
    done = pad("build", "--images", tmp_path / "part-*.tar", *common, "--shard-size", 4, "--out", out)
    assert done.code == 0, done.err
    assert found(out) == found(whole)
    shards = open_shards(out)
    captions = [shards.sample(name, row, image=False).meta["caption"] for name, row in shards.rows()]
    assert captions == [record["conversations"][1]["value"].strip() for record in records]


@pytest.mark.parametrize("stage", ["tag", "ground", "segment", "patchify"])
def test_a_later_stage_can_be_done_again(
    stage: str, whole: Path, common: list[object], pad: Pad, tmp_path: Path
) -> None:
    """From the shards themselves: with the same models and view, whichever stage it begins at, the same tars; and only
    the stages from there on are run."""
    out = tmp_path / "out"
    command = ["build", "--images", whole, "--redo-from", stage, *common, "--shard-size", 4]
    done = pad(*command, "--out", out)
    assert done.code == 0, done.err
    for path in sorted(whole.glob("*.tar")):
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    ran = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["stages"]
    stages = ["tag", "ground", "segment", "patchify"]
    assert list(ran) == ["decode", *stages[stages.index(stage) :]]
    assert pad("verify", out, "--deep").code == 0
    if stage == "patchify":  # another view of the same masks
        padded = pad(*command, "--fit", "pad", "--out", tmp_path / "padded")
        assert padded.code == 0, padded.err
        assert pad("verify", tmp_path / "padded", "--deep").code == 0


def test_redo_needs_shards(world: World, common: list[object], pad: Pad, tmp_path: Path) -> None:
    refused = pad("build", "--images", world.images, "--redo-from", "segment", *common, "--out", tmp_path / "out")
    assert refused.code == 2
    assert "--redo-from = segment" in refused.err


def test_shards_in_an_object_store(
    world: World, whole: Path, store: str, common: list[object], pad: Pad, tmp_path: Path
) -> None:
    """The same bytes as on a disk; verify, stats, view, resume, retries work there; images may come from there."""
    files = fsspec.filesystem("s3")
    files.put(str(world.images), "bucket/images", recursive=True)
    out = f"{store}/run"
    command = ["build", "--images", world.llava, "--image-root", world.images, *common, "--shard-size", 4, "--out", out]
    done = pad(*command)
    assert done.code == 0, done.err
    here = tmp_path / "here"
    files.get("bucket/run", str(here), recursive=True)
    assert data(here) == data(whole)
    assert pad("verify", out, "--deep").code == 0
    assert json.loads(pad("stats", out, "--json").out)["statuses"] == {"ok": 10}
    assert pad("report", out, "--out", tmp_path / "report").code == 0
    assert len(list((tmp_path / "report/images").rglob("*.jpg"))) == 10

    files.rm("bucket/run/pad-000001.parquet")
    files.pipe("bucket/run/pad-000002.tar", b"short")
    assert "its index is missing" in pad("verify", out).out
    again = pad(*command)
    assert again.code == 0, again.err
    assert "1 of 3 shards are finished already" in again.err
    files.get("bucket/run", str(tmp_path / "again"), recursive=True)
    assert data(tmp_path / "again") == data(whole)

    # The images from the store as well: a folder there, and relative paths below it.
    for number, images in enumerate((["--images", f"{store}/images"],
                                     ["--images", world.llava, "--image-root", f"{store}/images"])):  # fmt: skip
        remote = pad("build", *images, *common, "--shard-size", 4, "--out", tmp_path / f"remote-{number}")
        assert remote.code == 0, remote.err
        assert found(tmp_path / f"remote-{number}") == found(whole)


def test_two_runs_into_one_prefix_are_kept_apart(
    world: World, store: str, common: list[object], pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store has no locks: a sign of life every few seconds keeps others off, and one that stopped does not."""
    monkeypatch.setattr(lock, "BEAT", 0.5)
    files = fsspec.filesystem("s3")
    command = ["build", "--images", world.images, *common, "--limit", 2, "--out", f"{store}/locked"]
    with living("bucket/locked/.lock"):
        refused = pad(*command)
    assert refused.code == 2
    assert "another run is writing into it (process 1 on there)" in refused.err
    assert pad(*command).code == 0
    files.invalidate_cache()
    assert not files.exists("bucket/locked/.lock")


@pytest.mark.long
def test_a_run_killed_at_an_object_store_is_resumed(
    world: World, whole: Path, store: str, common: list[object], tmp_path: Path
) -> None:
    """SIGKILL in mid-run: the lock of a dead process on this machine holds nobody off; the bytes come out the same."""
    files = fsspec.filesystem("s3")
    out = f"{store}/killed"
    command = ["build", "--images", world.llava, "--image-root", world.images, *common, "--shard-size", 4, "--out", out]
    words = [str(word) for word in [PAD, *command]]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True) as process:
        wait_for(lambda: files.invalidate_cache() or files.exists("bucket/killed/pad-000000.parquet"), process)
        os.kill(process.pid, signal.SIGKILL)
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files.invalidate_cache()
    files.get("bucket/killed", str(tmp_path / "out"), recursive=True)
    assert data(tmp_path / "out") == data(whole)


def test_a_scheme_without_its_package_is_one_line(pad: Pad, common: list[object], world: World) -> None:
    """az:// without adlfs, and what is no store at all."""
    for out, said in (("az://bucket/run", "adlfs"), ("ftp://host/run", "begins with 'ftp'"), ("file:///tmp/x", "file")):
        refused = pad("build", "--images", world.images, *common, "--out", out)
        assert refused.code == 2
        assert said in refused.err
        assert refused.err.count("\n") == 1


def test_a_training_reads_shards_where_they_are(
    whole: Path, store: str, models_toml: Path, pad: Pad, tmp_path: Path
) -> None:
    """Shards in an object store, read by offset: the same losses to the bit as from a disk. Catches a reader that takes
    the wrong bytes of an object, or fetches whole tars."""
    bucket = fsspec.filesystem("s3")
    bucket.put(str(whole), f"{store.removeprefix('s3://')}/trained-on", recursive=True)
    small = models_toml.parent
    logs = []
    for number, shards in enumerate((whole, f"{store}/trained-on")):
        out = tmp_path / f"run-{number}"
        models = ["--vision", small / "clip", "--llm", small / "llm"]
        done = pad("train", "--shards", shards, *models, "--steps", 3, "--batch-size", 6, "--out", out)
        assert done.code == 0, done.err
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        logs.append([(line["caption_loss"], line["patch_loss"], line["grad_norm"]) for line in lines])
    assert logs[0] == logs[1]
