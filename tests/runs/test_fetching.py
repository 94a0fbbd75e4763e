"""Files of weights from the web and from a hub: fetched once, in part where a part is enough, and whole in the end."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
from collections import OrderedDict
from collections.abc import Callable
from itertools import cycle, repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from pad_pipeline import hub_errors, retries
from pad_pipeline.errors import UserError
from pad_pipeline.labels import EmbeddingTable, LabelEmbedder, LabelSettings
from pad_pipeline.pins import PINS, Pin
from pad_pipeline.remote_tensors import find_tensor
from pad_pipeline.tables import SOURCE
from pad_pipeline.transfers import Address, NotAloneError, RemoteFile
from pad_pipeline.weights import cache_folder, fetch_file, fetch_folder, fetch_model, file_sha256
from tests.hub import COMMIT, Hub

NAME = "model.embed_tokens.weight"


@pytest.fixture
def llm(online: Hub, models_toml: Path) -> Path:
    """The repository of an LLM on the hub: with a tokenizer, and so far without weights."""
    folder = online.repository("lab/llm")
    for path in (models_toml.parent / "llm").glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def in_processes(count: int, work: Callable[[], object]) -> None:
    """Do the same in several processes at once; they begin as copies of this one, with the fixtures' settings."""

    def child() -> None:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)

    context = multiprocessing.get_context("fork")
    children = [context.Process(target=child) for _ in range(count)]
    for one in children:
        one.start()
    for one in children:
        one.join(60)
    assert [one.exitcode for one in children] == [0] * count


def state(models_toml: Path) -> dict[str, torch.Tensor]:
    return load_file(models_toml.parent / "llm/model.safetensors")


def write_weights(folder: Path, weights: dict[str, torch.Tensor], form: str) -> str:
    """Write the weights of an LLM in one of the forms of the hub; return the name of the file with the embedding."""
    half = {name: tensor.half() for name, tensor in weights.items()}
    if form == "safetensors":
        save_file(half, folder / "model.safetensors")
        return "model.safetensors"
    if form == "bin":
        torch.save(half, folder / "pytorch_model.bin")
        return "pytorch_model.bin"
    ending = "safetensors" if form == "sharded safetensors" else "bin"
    first = f"{'model' if ending == 'safetensors' else 'pytorch_model'}-00001-of-00002.{ending}"
    rest = {name: tensor for name, tensor in half.items() if name.startswith("lm_head")}
    begin = {name: tensor for name, tensor in half.items() if name not in rest}
    for name, part in ((first, begin), (first.replace("00001", "00002", 1), rest)):
        save_file(part, folder / name) if ending == "safetensors" else torch.save(part, folder / name)
    index = {"weight_map": dict.fromkeys(begin, first) | dict.fromkeys(rest, first.replace("00001", "00002", 1))}
    (folder / f"{first.split('-')[0]}.{ending}.index.json").write_text(json.dumps(index))
    return first


def test_a_file_is_fetched_once_for_all_workers_of_a_node(online: Hub) -> None:
    """Eight workers of a node that start together fetched 2.5 GB each."""
    (online.folder / "web").mkdir(parents=True)
    (online.folder / "web/sam.pth").write_bytes(bytes(1_000_000))
    url = f"{online.url}/web/sam.pth"
    in_processes(3, lambda: fetch_file("segmenter.weights", url))
    assert fetch_file("segmenter.weights", url).read_bytes() == bytes(1_000_000)
    assert online.requests("sam.pth") == 1


def test_a_broken_download_goes_on_where_it_stopped(online: Hub) -> None:
    """Catches 2.5 GB that start again after every break, and a file that is put together from two."""
    (online.folder / "web").mkdir(parents=True)
    path, content = online.folder / "web/sam.pth", os.urandom(300_000)
    path.write_bytes(content)
    online.faults["sam.pth"] = iter(["503", "429", "cut 100000", "503", "cut 100000"])
    assert fetch_file("segmenter.weights", f"{online.url}/web/sam.pth").read_bytes() == content
    assert online.sent["sam.pth"] == len(content)

    online.sent.clear()
    online.faults["sam.pth"] = iter(["cut 100000", *["503"] * 5])
    with pytest.raises(UserError, match="try again later: what has arrived is kept"):
        fetch_file("segmenter.weights", f"{online.url}/web/sam.pth?later")
    assert fetch_file("segmenter.weights", f"{online.url}/web/sam.pth?later").read_bytes() == content
    assert online.sent["sam.pth"] == len(content)

    def changed() -> Any:
        yield "cut 100000"
        path.write_bytes(content[::-1])
        yield "fine"

    online.faults["sam.pth"] = changed()
    assert fetch_file("segmenter.weights", f"{online.url}/web/sam.pth?again").read_bytes() == content[::-1]


def test_a_download_without_a_version_begins_again(online: Hub) -> None:
    """A server that says neither a strong ETag nor a date. Catches a file that is put together from two versions, and
    a download without end, because each new beginning counted as progress."""
    (online.folder / "web").mkdir(parents=True)
    path, content = online.folder / "web/sam.pth", os.urandom(300_000)
    path.write_bytes(content)
    online.versions = False

    def changed() -> Any:
        yield "cut 100000"
        path.write_bytes(content[::-1])
        yield "fine"

    online.faults["sam.pth"] = changed()
    assert fetch_file("segmenter.weights", f"{online.url}/web/sam.pth").read_bytes() == content[::-1]
    online.faults["sam.pth"] = cycle(["cut 100000", "cut 90000"])
    with pytest.raises(UserError, match="could not be fetched"):
        fetch_file("segmenter.weights", f"{online.url}/web/sam.pth?later")


@pytest.mark.parametrize("form", ["safetensors", "bin", "sharded safetensors", "sharded bin"])
def test_of_an_llm_only_the_embedding_is_fetched(online: Hub, llm: Path, models_toml: Path, form: str) -> None:
    """Catches 10 GB of Vicuna for 262 MB, and an embedding that is not the file's: the fingerprint is that of the whole
    file, so that a run goes on with either. The second use needs no network."""
    file = write_weights(llm, state(models_toml), form)
    settings = LabelSettings(llm="lab/llm")
    assert settings.files()[0].path is None
    embedder = LabelEmbedder(settings)
    size = embedder.table.path.stat().st_size
    assert embedder.fingerprints()["llm_embedding"] == EmbeddingTable(llm).sha256()
    assert online.sent[file] < size + 140_000 < (llm / file).stat().st_size
    assert sum(online.sent.values()) < size + 200_000
    source = json.loads((embedder.table.path.parent / SOURCE).read_text())
    assert (source["reference"], source["revision"], source["file"]) == ("lab/llm", COMMIT, file)
    assert source["tensor"] == NAME and source["etag"] == file_sha256(llm / file)
    constants.HF_HUB_OFFLINE = True
    asked = len(online.asked)
    assert (LabelEmbedder(settings)(["window"]) == embedder(["window"])).all()
    assert settings.files()[0].path == embedder.folder
    assert len(online.asked) == asked


@pytest.mark.parametrize("form", ["safetensors", "sharded bin", "refused"])
def test_an_llm_of_the_web_is_fetched_in_part_too(
    online: Hub, llm: Path, models_toml: Path, form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A mirror without the hub's protocol. Catches a second fetch, and a folder without weights that is used."""
    file = write_weights(llm, state(models_toml), "bin" if form == "refused" else form)
    shutil.copytree(llm, online.folder / "web/llm")
    online.faults["added_tokens.json"] = repeat("403")
    if form == "refused":
        online.faults["model.safetensors"] = repeat("403")
        online.faults[file] = repeat("whole")
    settings = LabelSettings(llm=f"{online.url}/web/llm/")
    assert settings.files()[0].path is None
    table = LabelEmbedder(settings).table
    assert "because the server refuses them (403), as if absent: added_tokens.json\n" in capfd.readouterr().err
    assert table.sha256() == EmbeddingTable(llm).sha256()
    assert (table.path.parent.parent.name == "embeddings") == (form != "refused")
    if form != "refused":
        assert online.sent[file] < table.path.stat().st_size + 140_000 < (llm / file).stat().st_size
    asked = len(online.asked)
    assert LabelEmbedder(settings).table.path == table.path
    assert (folder := settings.files()[0].path)
    assert {path.name for path in folder.iterdir()} - {path.name for path in llm.iterdir()} == {"hashes.json"}
    assert len(online.asked) == asked
    line = line_of(lambda: LabelEmbedder(LabelSettings(llm=f"{online.url}/web/other")))
    assert line == f"llm.llm = {online.url}/web/other: there is no such file; correct the name"


def test_a_broken_embedding_goes_on_in_the_next_run(online: Hub, llm: Path, models_toml: Path) -> None:
    """Catches a build that a bad network can never start: each run began the download anew."""
    weights = {name: tensor.repeat(40, 1) if name == NAME else tensor for name, tensor in state(models_toml).items()}
    file = write_weights(llm, weights, "sharded safetensors")
    online.faults[f"cdn/models/lab/llm/{file}"] = iter(["fine", "fine", "cut 500000", *["503"] * 9])
    with pytest.raises(UserError, match="out of order for now; try again later: what has arrived is kept"):
        LabelEmbedder(LabelSettings(llm="lab/llm"))
    online.faults.clear()
    before = online.sent[file]
    table = LabelEmbedder(LabelSettings(llm="lab/llm")).table
    assert table.sha256() == EmbeddingTable(llm).sha256()
    assert online.sent[file] - before < table.path.stat().st_size - 500_000 + 20_000


def test_several_workers_fetch_the_embedding_once(online: Hub, llm: Path, models_toml: Path) -> None:
    file = write_weights(llm, state(models_toml), "sharded bin")
    in_processes(3, lambda: LabelEmbedder(LabelSettings(llm="lab/llm"))(["window"]))
    table = LabelEmbedder(LabelSettings(llm="lab/llm")).table
    assert online.sent[file] < table.path.stat().st_size + 140_000
    assert online.requests("tokenizer.json") <= 1


def test_a_file_of_the_hubs_cache_is_used(online: Hub, llm: Path, models_toml: Path) -> None:
    """Catches a second copy for those who have the whole LLM."""
    file = write_weights(llm, state(models_toml), "sharded bin")
    folder = fetch_model("llm", "lab/llm")
    sent = online.sent[file]
    assert LabelEmbedder(LabelSettings(llm="lab/llm")).table.path == folder / file
    assert online.sent[file] == sent


FORMS: dict[str, Any] = {
    "compressed": lambda path, weights: _save_compressed(path, weights),
    "legacy": lambda path, weights: torch.save(weights, path, _use_new_zipfile_serialization=False),
    "transposed": lambda path, weights: torch.save(weights | {NAME: weights[NAME].t().contiguous().t()}, path),
}


def _save_compressed(path: Path, weights: dict[str, torch.Tensor]) -> None:
    import zipfile

    torch.save(weights, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("form", ["legacy", "compressed", "transposed", "whole"])
def test_the_whole_file_is_fetched_where_a_part_is_not_enough(
    online: Hub, llm: Path, models_toml: Path, form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Old files of torch, other layouts, and servers that refuse ranges. Catches an embedding of wrong numbers."""
    weights = {name: tensor.half() for name, tensor in state(models_toml).items()}
    FORMS.get(form, lambda path, weights: torch.save(weights, path))(llm / "pytorch_model.bin", weights)
    if form == "whole":
        online.faults["pytorch_model.bin"] = repeat("whole")
    table = LabelEmbedder(LabelSettings(llm="lab/llm")).table
    assert table.path.name == "pytorch_model.bin"
    assert table.sha256() == EmbeddingTable(llm).sha256()
    assert "lab/llm: all of its weights is fetched, and not the embedding alone (" in capfd.readouterr().err


def test_code_in_a_pickle_is_not_run(online: Hub, llm: Path, tmp_path: Path) -> None:
    """Catches a pickle that runs a command as soon as its first kilobytes are read."""

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'run'}",)

    torch.save(OrderedDict({NAME: torch.zeros(400, 64), "evil": Evil()}), llm / "pytorch_model.bin")
    with pytest.raises(UserError, match="it holds more than tensors"):
        LabelEmbedder(LabelSettings(llm="lab/llm"))
    assert not (tmp_path / "run").exists()


def test_damaged_bytes_of_a_zip_are_found(online: Hub, llm: Path, models_toml: Path) -> None:
    """The checksum of the zip's directory holds for the part that is fetched."""
    file = write_weights(llm, state(models_toml), "bin")
    content = bytearray((llm / file).read_bytes())
    begin = content.find(state(models_toml)[NAME].half().numpy().tobytes())
    content[begin + 1000] ^= 1
    (llm / file).write_bytes(content)
    with pytest.raises(UserError, match=r"has the checksum .*, and should have"):
        LabelEmbedder(LabelSettings(llm="lab/llm"))
    assert not [*(cache_folder() / "embeddings").rglob("model.safetensors")]


def test_pins_hold_for_a_name_without_a_revision(online: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a branch that moved under a preset, and a file of the pinned revision that was replaced."""
    folder = online.repository("lab/detector")
    save_file({"a": torch.zeros(3)}, folder / "model.safetensors")
    sha256 = file_sha256(folder / "model.safetensors")
    monkeypatch.setitem(PINS, "lab/detector", Pin("d" * 40, {"model.safetensors": sha256}))
    patterns = ["model*.safetensors"]
    with pytest.raises(UserError, match="the hub has no such revision of it; correct the revision, or leave it out"):
        fetch_folder("detector.model", "lab/detector", "", patterns)
    assert fetch_folder("detector.model", "lab/detector", "main", patterns).name == COMMIT
    online.commits["lab/detector"] = "d" * 40
    assert fetch_folder("detector.model", "lab/detector", "", patterns).name == "d" * 40
    monkeypatch.setitem(PINS, "lab/detector", Pin("d" * 40, {"model.safetensors": "0" * 64}))
    with pytest.raises(UserError, match=f"its sha256 is {sha256}, and should be 0000") as error:
        fetch_folder("detector.model", "lab/detector", "", patterns)
    Path(str(error.value).partition("; delete ")[2].partition(" and fetch")[0]).unlink()
    monkeypatch.setitem(PINS, "lab/detector", Pin("d" * 40, {"model.safetensors": sha256}))
    assert (fetch_folder("detector.model", "lab/detector", "", patterns) / "model.safetensors").is_file()


def test_a_gated_model_is_fetched_with_a_token_that_goes_to_the_hub_alone(
    online: Hub, llm: Path, models_toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a riddle of the library instead of the three steps, and a token that a CDN gets to see."""
    write_weights(llm, state(models_toml), "safetensors")
    online.gated["lab/llm"] = "hf_right"
    page = f"{online.url}/lab/llm"
    rule = "llm.llm = lab/llm: its authors give it only to those who accept its license"
    token = "make a token in your account's settings there, and set HF_TOKEN to it"
    assert line_of(lambda: LabelEmbedder(LabelSettings(llm="lab/llm"))) == f"{rule}; accept it on {page}, {token}"
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    remedy = f"accept it on {page} with the account of your token, wait for the consent, and try again"
    assert line_of(lambda: LabelEmbedder(LabelSettings(llm="lab/llm"))) == f"{rule}; {remedy}"
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    LabelEmbedder(LabelSettings(llm="lab/llm"))
    assert {token for _, path, _, token in online.asked if path.startswith("/cdn/")} == {""}


def line_of(work: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        work()
    assert "\n" not in str(error.value)
    return str(error.value)


FAILURES = {
    "no model": ("lab/nothing", "", "the hub has no model of this name, or it is private; correct the name; for a "),
    "no revision": ("lab/llm", "v2", "the hub has no such revision of it; correct the revision, or leave it out"),
    "busy": ("lab/llm", "", "the server limits the number of requests; try again in some minutes; with HF_TOKEN set"),
    "broken": ("lab/llm", "", "the server is out of order for now; try again later: what has arrived is kept"),
    "offline": ("lab/llm", "", "it is not in the cache, and HF_HUB_OFFLINE forbids to fetch it; unset HF_HUB_OFFLINE"),
    "no server": ("lab/llm", "", "it is not in the cache and could not be fetched ("),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_every_failure_is_one_line_with_its_remedy(
    online: Hub, llm: Path, models_toml: Path, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_weights(llm, state(models_toml), "safetensors")
    name, revision, message = FAILURES[failure]
    if failure in ("busy", "broken"):
        online.faults["config.json"] = repeat("429" if failure == "busy" else "503")
    if failure == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if failure == "no server":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    line = line_of(lambda: LabelEmbedder(LabelSettings(llm=name, revision=revision)))
    assert line.startswith(f"llm.llm = {name}: {message}")


@pytest.mark.parametrize("status", ["401", "403", "429"])
def test_an_error_of_a_server_of_the_web_is_not_put_on_the_hub(online: Hub, status: str) -> None:
    """Catches a remedy that names the hub's token, which goes to no other server."""
    online.faults["sam.pth"] = repeat(status)
    line = line_of(lambda: fetch_file("segmenter.weights", f"{online.url}/web/sam.pth"))
    refused = f"its server refuses it ({status}); check the URL, or download it elsewhere and name its local path"
    busy = "the server limits the number of requests; try again in some minutes"
    assert line == f"segmenter.weights = {online.url}/web/sam.pth: {busy if status == '429' else refused}"


def test_an_embedding_that_is_not_here_is_said_before_a_build(
    online: Hub, llm: Path, models_toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches `pad doctor` that takes an LLM with a tokenizer for complete, and a pause for a network that is off."""
    write_weights(llm, state(models_toml), "safetensors")
    settings = LabelSettings(llm="lab/llm")
    fetch_folder("llm.llm", "lab/llm", "", ["*.json"])
    assert settings.files()[0].path is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(retries, "PAUSE", 1e6)
    assert "HF_HUB_OFFLINE forbids to fetch it" in line_of(lambda: LabelEmbedder(settings))


def test_an_llm_with_another_hash_than_the_pinned_one_is_refused_before_its_bytes_come(
    online: Hub, llm: Path, models_toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub says the sha256 of a large file in its ETag, and of a part nothing else can be compared."""
    file = write_weights(llm, state(models_toml), "safetensors")
    monkeypatch.setitem(PINS, "lab/llm", Pin(COMMIT, {file: "0" * 64}))
    line = line_of(lambda: LabelEmbedder(LabelSettings(llm="lab/llm")))
    assert f"the sha256 of {file} is {file_sha256(llm / file)} there, and should be 0000" in line
    assert online.sent[file] == 0
    monkeypatch.setitem(PINS, "lab/llm", Pin(COMMIT, {file: file_sha256(llm / file)}))
    LabelEmbedder(LabelSettings(llm="lab/llm"))


def test_an_llm_without_weights_is_said(online: Hub, llm: Path) -> None:
    (llm / "consolidated.pth").write_bytes(bytes(9000))
    assert "no checkpoint in it holds an input embedding" in line_of(
        lambda: LabelEmbedder(LabelSettings(llm="lab/llm"))
    )
    assert online.sent["consolidated.pth"] == 0


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    rule, remedy = hub_errors.explained(OSError(28, "No space left on device"), "lab/llm")
    assert (rule, remedy[:9]) == ("there is no room for it", "make room")


def test_a_busy_hub_is_asked_again(online: Hub, llm: Path, models_toml: Path) -> None:
    """Catches a build that ends because the hub answers 429 or 503 once, and a file that broke off."""
    file = write_weights(llm, state(models_toml), "safetensors")
    for name in ("llm/revision/main", "resolve/main/config.json", f"cdn/models/lab/llm/{file}"):
        online.faults[name] = iter(["429", "503", "cut 100", "fine", "503"])
    table = LabelEmbedder(LabelSettings(llm="lab/llm")).table
    assert table.sha256() == EmbeddingTable(llm).sha256()


class Bytes(RemoteFile):
    """A file in memory in place of one on the web."""

    def __init__(self, content: bytes) -> None:
        super().__init__(lambda: Address("", {}), len(content), "")
        self.content = content

    def stream(self, start: int, stop: int, write: Callable[[bytes], Any]) -> None:
        write(self.content[start:stop])


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_damaged_headers_end_in_a_tensor_or_in_the_whole_file(models_toml: Path, tmp_path: Path, form: str) -> None:
    """Catches a traceback, an endless read, and a place outside of the file."""
    weights = {name: state(models_toml)[name] for name in (NAME, "model.norm.weight")}
    content = (tmp_path / write_weights(tmp_path, weights, form)).read_bytes()
    begin = content.find(weights[NAME].half().numpy().tobytes())
    draw, found = random.Random(7), 0
    for _ in range(1500):
        changed = bytearray(content)
        for _ in range(draw.choice([1, 1, 2, 8])):
            where = draw.randrange(len(changed))
            if begin <= where < begin + weights[NAME].nbytes // 2:
                where = draw.randrange(begin)
            changed[where] = draw.choice([0, 1, 0x7F, 0xFF, draw.randrange(256)])
        changed = changed[: draw.choice([len(changed)] * 9 + [draw.randrange(9, len(changed))])]
        try:
            place = find_tensor(Bytes(bytes(changed)), (NAME,))
        except NotAloneError:
            continue
        assert 0 <= place.start < place.stop <= len(changed)
        found += 1
    assert 30 < found < 1500
