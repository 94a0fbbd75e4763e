"""The folder that an export is written to: what stands in it is not spoiled, and nothing is written outside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pad_pipeline.errors import UserError
from pad_pipeline.exports.target import Target
from tests.sharing.conftest import Pad


def test_exports_refuse_what_they_would_spoil(built: Path, pad: Pad, tmp_path: Path) -> None:
    """A folder with something else in it, an export of another kind, a run that is not finished; a second export of
    the same kind is the first."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    refused = pad("export", "coco", built, "--out", tmp_path / "mine")
    assert refused.code == 2 and "something else" in refused.err
    assert pad("export", "parquet", built, "--out", tmp_path / "out").code == 0
    first = (tmp_path / "out/regions.parquet").read_bytes()
    assert pad("export", "parquet", built, "--out", tmp_path / "out").code == 0
    assert (tmp_path / "out/regions.parquet").read_bytes() == first
    refused = pad("export", "coco", built, "--out", tmp_path / "out")
    assert refused.code == 2 and "another kind" in refused.err
    half = tmp_path / "half"
    shutil.copytree(built, half)
    (half / "pad-000001.parquet").unlink()
    refused = pad("export", "hub", half, "--out", tmp_path / "hub")
    assert refused.code == 2 and "not finished" in refused.err
    refused = pad("export", "coco", tmp_path / "nothing", "--out", tmp_path / "new")
    assert refused.code == 2 and not (tmp_path / "new").exists()


def test_nothing_is_written_outside_the_folder(built: Path, pad: Pad, tmp_path: Path) -> None:
    """Through a link in the folder of an earlier export, images went where the link leads."""
    assert pad("export", "coco", built, "--out", tmp_path / "out").code == 0
    (tmp_path / "mine").mkdir()
    shutil.rmtree(tmp_path / "out/images")
    (tmp_path / "out/images").symlink_to(tmp_path / "mine")
    refused = pad("export", "coco", built, "--out", tmp_path / "out")
    assert refused.code == 2 and "does not lie in the folder" in refused.err, refused.err
    assert not list((tmp_path / "mine").iterdir())
    target = Target(tmp_path / "new", "coco")
    for name in ("../evil", "images/../../evil", str(tmp_path / "evil"), "", "images/.."):
        with pytest.raises(UserError, match="does not lie in the folder"):
            target.write(name, b"evil")
    target.write("images/a.png", b"good")
    assert not (tmp_path / "evil").exists() and (tmp_path / "new/images/a.png").read_bytes() == b"good"


@pytest.mark.parametrize("kind", ["coco", "fiftyone", "parquet", "hub"])
@pytest.mark.parametrize("out", ["s3://bucket/x", "hf://datasets/me/mine", "file:///x", ""])
def test_an_export_to_a_url_is_refused(
    kind: str, out: str, built: Path, pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It became a local folder called `s3:`, and the user looked for his export in the bucket."""
    monkeypatch.chdir(tmp_path)
    refused = pad("export", kind, built, "--out", out)
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert f"--out = {out}: an export is written to a disk; name a folder on this machine" in refused.err
    assert not list(tmp_path.iterdir())
