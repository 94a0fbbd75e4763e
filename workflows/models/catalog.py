"""The catalog of official model files: short names, addresses, sizes, sha256, licenses, and which are gated."""

from __future__ import annotations

from typing import NamedTuple

_RAM_SOURCE = "https://raw.githubusercontent.com/xinyu1205/recognize-anything/7cb804a8609e9f4b1a50b7f31436d2df40bb9481"
_RAM = f"{_RAM_SOURCE}/ram/data"
_RAM_MODEL = "recognize_anything_model@a4f945fe0720892020c28309624df3bd1f3ad3dc"
_RAM_PLUS = "recognize-anything-plus-model@6afd703f04b23e1c18d4c7d9882c4f5f954848f8"
_DINO = "hf://ShilongLiu/GroundingDINO@a94c9b567a2a374598f05c584e96798a170c56fb"
_SAM = "https://dl.fbaipublicfiles.com/segment_anything"


class OfficialFile(NamedTuple):
    """One model file that its authors publish."""

    reference: str
    """The address, in a form that `fetch_file` accepts."""
    megabytes: int
    """Approximate size."""
    sha256: str
    """The hash that two independent public sources agree on; empty if none is known."""
    what: str
    """A short description."""
    license: str = "Apache-2.0"
    """The license that its authors state on its page, or for the repository that holds it."""


OFFICIAL = {
    "ram_swin_large_14m": OfficialFile(
        f"hf://xinyu1205/{_RAM_MODEL}/ram_swin_large_14m.pth", 5626,
        "15c729c793af28b9d107c69f85836a1356d76ea830d4714699fb62e55fcc08ed", "RAM, Swin-L", "MIT",
    ),
    "ram_plus_swin_large_14m": OfficialFile(
        f"hf://xinyu1205/{_RAM_PLUS}/ram_plus_swin_large_14m.pth", 3010,
        "497c178836ba66698ca226c7895317e6e800034be986452dbd2593298d50e87d", "RAM++, Swin-L",
    ),
    "ram_tag_list": OfficialFile(
        f"{_RAM}/ram_tag_list.txt", 0, "5d96d2f7225527480ad773aaac76b6e5c08a18adf6eae9ca7d2ab923d5e7bd8b",
        "RAM's and RAM++'s 4585 tags",
    ),
    "ram_tag_list_threshold": OfficialFile(
        f"{_RAM}/ram_tag_list_threshold.txt", 0, "b6f81d0de1bc7f9c251af512c413eae976c77dbfbadf700d4e3d90510f4c6447",
        "a threshold for each of them",
    ),
    "groundingdino_swint_ogc": OfficialFile(
        f"{_DINO}/groundingdino_swint_ogc.pth", 694,
        "3b3ca2563c77c69f651d7bd133e97139c186df06231157a64c507099c52bc799", "Grounding DINO, Swin-T",
    ),
    "groundingdino_swinb_cogcoor": OfficialFile(
        f"{_DINO}/groundingdino_swinb_cogcoor.pth", 938,
        "46270f7a822e6906b655b729c90613e48929d0f2bb8b9b76fd10a856f3ac6ab7", "Grounding DINO, Swin-B",
    ),
    "sam_vit_b": OfficialFile(
        f"{_SAM}/sam_vit_b_01ec64.pth", 375, "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        "SAM, ViT-B",
    ),
    "sam_vit_l": OfficialFile(
        f"{_SAM}/sam_vit_l_0b3195.pth", 1250, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        "SAM, ViT-L",
    ),
    "sam_vit_h": OfficialFile(
        f"{_SAM}/sam_vit_h_4b8939.pth", 2565, "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        "SAM, ViT-H",
    ),
}  # fmt: skip
"""Short name -> file. A setting that names a file accepts a short name; the file's hash is then checked."""

MEGABYTES: dict[str, int] = {file.reference: file.megabytes for file in OFFICIAL.values()} | {
    "IDEA-Research/grounding-dino-base": 933,
    "IDEA-Research/grounding-dino-tiny": 689,
    "facebook/sam2.1-hiera-tiny": 156,
    "facebook/sam2.1-hiera-small": 184,
    "facebook/sam2.1-hiera-base-plus": 323,
    "facebook/sam2.1-hiera-large": 898,
    "lmsys/vicuna-7b-v1.5": 263,
    "google-bert/bert-base-uncased": 1,
}
"""Address of a file, or hub name of a folder -> approximate megabytes that a build fetches. Of an LLM, a build fetches
its tokenizer and its embedding (of Vicuna 7B, 32000 x 4096 numbers of 2 bytes)."""

WHOLE_MEGABYTES = MEGABYTES | {"lmsys/vicuna-7b-v1.5": 9977}
"""The same, if the server of an LLM sends whole files only."""

_LLAMA_2 = "Llama 2 Community License"
LICENSES: dict[str, str] = (
    {known: file.license for file in OFFICIAL.values() for known in (file.reference, file.sha256)}
    | {f"facebook/sam-vit-{size}": "Apache-2.0" for size in ("base", "large", "huge")}
    | {f"facebook/sam2.1-hiera-{size}": "Apache-2.0" for size in ("tiny", "small", "base-plus", "large")}
    | {f"IDEA-Research/grounding-dino-{size}": "Apache-2.0" for size in ("tiny", "base")}
    | {f"iSEE-Laboratory/llmdet_{size}": "Apache-2.0" for size in ("tiny", "base", "large")}
    | {"facebook/sam3": "SAM License"}
    | {f"lmsys/vicuna-{size}-v1.5": _LLAMA_2 for size in ("7b", "13b")}
    | {f"meta-llama/Llama-2-{size}{chat}-hf": _LLAMA_2 for size in ("7b", "13b", "70b") for chat in ("", "-chat")}
    | {f"miniature:{part}": "Apache-2.0" for part in ("tagger.safetensors", "detector", "segmenter.safetensors", "llm")}
)
"""Address or sha256 of a model -> the license that its authors state, if it is known for sure. The miniature has the
license of pad."""

GATED = frozenset({"facebook/sam3"}) | frozenset(
    f"meta-llama/Llama-2-{size}{chat}-hf" for size in ("7b", "13b", "70b") for chat in ("", "-chat")
)
"""Hub names of models that are given only to those who accept their license, with an account's token."""
