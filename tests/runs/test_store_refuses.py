"""An object store that refuses in mid-run ends in one line, and what it refused is read once it may be read again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pad_pipeline import retries
from pad_pipeline.images import BadImage
from pad_pipeline.miniature.files import World
from pad_pipeline.records import Place
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.sources import cells, read
from pad_pipeline.sources.open import open_source
from tests.conftest import data
from tests.runs.conftest import Pad
from tests.sources.small_sources import MOST, error_of, png, write_list

ANSWERS = {
    "ExpiredToken": "403 Forbidden", "InvalidAccessKeyId": "403 Forbidden", "ServiceUnavailable": "503 Slow Down",
}  # fmt: skip
"""Code of the error of a store -> its HTTP status."""


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A bucket of an S3 server on this machine, which refuses the paths for which `refuses` is true, with `code`."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    store = DomainDispatcherApplication(create_backend_app)
    guard = SimpleNamespace(url="s3://guarded", refuses=lambda path: False, code="ExpiredToken", asked=[])

    def serve(environ: dict[str, Any], answer: Callable[..., Any]) -> Iterable[bytes]:
        path = unquote(f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}")
        guard.asked.append(path)
        if not guard.refuses(path):
            return store(environ, answer)  # type: ignore[no-any-return]
        body = f"<Error><Code>{guard.code}</Code><Message>The provided token has expired.</Message></Error>".encode()
        answer(ANSWERS[guard.code], [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

    server = make_server("127.0.0.1", 0, serve, threaded=True)
    Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(retries, "PAUSE", 0.0)
    monkeypatch.setattr(read, "_readable", {})
    guard.files = fsspec.filesystem("s3")
    guard.files.retries = 1
    guard.files.makedirs("guarded", exist_ok=True)
    yield guard
    guard.refuses = lambda path: False
    guard.files.rm("guarded", recursive=True)
    guard.files.clear_instance_cache()
    cells._columns.clear()
    server.shutdown()


def upload(guarded: SimpleNamespace, world: World, kind: str, tmp_path: Path) -> str:
    """The ten scenes in the bucket: as Parquet files of two, or as files."""
    if kind == "files":
        guarded.files.put(str(world.images), "guarded/images", recursive=True)
        return f"{guarded.url}/images"
    scenes = sorted(world.images.iterdir())
    for number in range(0, len(scenes), 2):
        column = [{"bytes": one.read_bytes(), "path": one.name} for one in scenes[number : number + 2]]
        pq.write_table(pa.table({"image": column, "text": ["a", "b"]}), tmp_path / "part.parquet")
        guarded.files.put(str(tmp_path / "part.parquet"), f"guarded/images/part-{number // 2}.parquet")
    return f"{guarded.url}/images/part-*.parquet"


@pytest.mark.parametrize("kind", ["parquet", "files"])
@pytest.mark.parametrize("code", ANSWERS)
def test_a_store_that_refuses_in_mid_run_stops_it(
    world: World, guarded: SimpleNamespace, common: list[object], pad: Pad, tmp_path: Path, kind: str, code: str
) -> None:
    """Catches credentials that end at night and put the rest of the images into quarantine, from where an ordinary
    rerun does not take them back."""
    images, out = upload(guarded, world, kind, tmp_path), tmp_path / "out"
    command = ["build", "--images", images, *common, "--engine", "local", "--shard-size", 4, "--fingerprint", "sizes"]
    assert pad(*command, "--out", tmp_path / "whole").code == 0
    cells._columns.clear()
    guarded.files.invalidate_cache()
    guarded.code, guarded.refuses = code, lambda path: (out / "pad-000000.parquet").exists()
    stopped = pad(*command, "--out", out)
    assert stopped.code == 2
    lines = [line for line in stopped.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert re.search(r"--images = s3://guarded/images/\S+: its store no longer gives this file, and no other", lines[0])
    assert [path.name for path in sorted(out.glob("*.parquet"))] == ["pad-000000.parquet", "plan.parquet"]
    refused = pad(*command, "--out", out)
    assert (refused.code, (out / "pad-000001.parquet").exists()) == (2, False)
    guarded.refuses = lambda path: False
    guarded.files.invalidate_cache()
    again = pad(*command, "--out", out)
    assert again.code == 0, again.err
    assert data(out) == data(tmp_path / "whole")
    assert {row["status"] for _, row in open_shards(out).rows()} == {"ok"}


def test_credentials_that_never_worked_stop_a_run_before_it_begins(
    world: World, guarded: SimpleNamespace, common: list[object], pad: Pad, tmp_path: Path
) -> None:
    """Catches a local list of images in a store, planned without a look at the store, whose images all fail; at the
    first run, and at a resume."""
    images, out = upload(guarded, world, "files", tmp_path), tmp_path / "out"
    listed = write_list(tmp_path / "list.jsonl", [{"image": path.name} for path in sorted(world.images.iterdir())])
    command = ["build", "--images", listed, "--image-root", images, *common, "--engine", "local", "--shard-size", 4]
    guarded.refuses = lambda path: True
    refused = pad(*command, "--out", out)
    assert refused.code == 2
    assert "none of the 10 images that were tried can be read (scene-000" in refused.err
    assert "it may not be read (PermissionError: Forbidden)" in refused.err and "--fingerprint sizes" in refused.err
    assert not list(out.glob("*.parquet"))
    guarded.refuses = lambda path: (out / "pad-000000.parquet").exists()
    assert pad(*command, "--out", out).code == 2
    read._readable.clear()  # as in a new process
    assert "none of the 10 images that were tried" in pad(*command, "--out", out).err
    guarded.refuses = lambda path: False
    assert pad(*command, "--out", out).code == 0
    assert {row["status"] for _, row in open_shards(out).rows()} == {"ok"}


@pytest.mark.parametrize("code", ANSWERS)
@pytest.mark.parametrize("images", ["images", "images/*.csv", "images/*/*.csv", "images/**/*.csv"])
def test_a_folder_that_may_not_be_listed_is_not_empty(guarded: SimpleNamespace, images: str, code: str) -> None:
    """Catches a folder that is left out in silence, or "no file has such a name", where the store gave no answer."""
    for name in ("a.csv", "a.png", "more/b.csv", "more/b.png"):
        guarded.files.pipe(f"guarded/images/{name}", b"image\nb.png\n" if name.endswith(".csv") else png())
    guarded.files.invalidate_cache()
    found = [one.source for one in open_source(f"{guarded.url}/{images}")]
    whole = ["a.png", "more/b.png"] if images == "images" else ["b.png"] * (1 + ("**" in images))
    assert len(found) == len(whole)
    refused = "prefix=images/&" if images == "images/*.csv" else "prefix=images/more/"
    guarded.code, guarded.refuses = code, lambda path: refused in path
    guarded.files.invalidate_cache()
    guarded.asked.clear()
    assert "it can't be listed (" in error_of(f"{guarded.url}/{images}")
    assert any(map(guarded.refuses, guarded.asked))


def test_a_file_that_may_not_be_read_fails_alone(guarded: SimpleNamespace, tmp_path: Path) -> None:
    """Catches one private file in a bucket that stops a run of millions, and "nothing there" where something is."""
    for name in ("a.png", "b.png", "c.png"):
        guarded.files.pipe(f"guarded/images/{name}", png())
    guarded.code, guarded.refuses = "InvalidAccessKeyId", lambda path: "b.png" in path
    for name, said in (("b.png", "it may not be read"), ("a.png", ""), ("b.png", "it may not be read"),
                       ("none.png", "there is nothing at this URL")):  # fmt: skip
        try:
            assert read.read_bytes(f"{guarded.url}/images", Place(name), MOST) == png() and not said
        except BadImage as error:
            assert said and said in str(error)
