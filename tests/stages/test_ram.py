"""RAM and RAM++ against upstream's numbers, and the handling of their checkpoints."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torchvision import transforms

from pad_pipeline.errors import UserError
from pad_pipeline.stages.ram.checkpoint import load_ram
from pad_pipeline.stages.ram.network import Ram, RamSettings
from pad_pipeline.stages.tag import STD, normalize, resize
from tests.conftest import shared

TOLERANCE = 5e-5


def known_answer(family: str, size: int) -> tuple[Ram, torch.Tensor, dict[str, np.ndarray], dict]:
    """The reduced network with upstream's seeded weights, its input, upstream's numbers and the facts about them."""
    folder = shared("ram")
    spec = importlib.util.spec_from_file_location("seeded_weights", folder / "seeded_weights.py")
    assert spec and spec.loader
    seeded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeded)
    facts = json.loads((folder / f"{family}_reduced_{size}.json").read_text())
    swin = facts["meta"]["swin"]
    network = Ram(
        RamSettings(
            family=family, image_size=size, embed_dim=32, depths=swin["depths"], num_heads=swin["num_heads"],
            window=swin["window_size"], head_width=96, head_heads=4, head_feed_forward=384,
        ),
        tags=64,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(seeded.det_param(name, tuple(parameter.shape)))
    numbers = dict(np.load(folder / f"{family}_reduced_{size}.npz", allow_pickle=False))
    images = numbers.get("input")
    if images is None:
        images = np.load(folder / "input_384.npz", allow_pickle=False)["input"]
    return network, torch.from_numpy(images), numbers, facts


@pytest.mark.parametrize("size", [224, 384])
@pytest.mark.parametrize("family", ["ram", "ram_plus"])
def test_every_intermediate_equals_upstream(family: str, size: int) -> None:
    """Shifts, masks, merging order, biases, head scale: each has its own intermediate, to 5e-5."""
    network, images, expected, facts = known_answer(family, size)
    found: dict[str, torch.Tensor] = {}
    encoder, head = network.visual_encoder, network.tagging_head["encoder"]["layer"]  # type: ignore[index]
    modules = {
        "patch_embed": encoder.patch_embed["norm"],
        "visual_encoder": encoder,
        "image_embeds": network.image_proj,
    }
    modules |= {f"layer{i}": layer for i, layer in enumerate(encoder.layers)}
    modules |= {"wordvec_proj": network.wordvec_proj} | {f"tag_layer{i}": layer for i, layer in enumerate(head)}
    for name, module in modules.items():
        module.register_forward_hook(lambda _m, _i, output, name=name: found.update({name: output}))
    with torch.inference_mode():
        found["logits"] = network(images)
    for name, tensor in found.items():
        truth = expected[name]
        ours = tensor.numpy()
        ours = ours.reshape(truth.shape) if ours.size == truth.size else ours[:, : truth.shape[1]]
        assert np.abs(ours - truth).max() < TOLERANCE, name
    assert len(found) == 11
    middle = facts["mid"]
    on = found["logits"].sigmoid() > middle["threshold"]
    tags = [" | ".join(facts["tag_list"][i] for i in row.nonzero().flatten()) for row in on]
    assert tags == middle["tags"]


def drawn_parameter(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value that upstream's network was given when the golden numbers were made, from its name alone."""
    if name == "reweight_scale":
        return torch.tensor(math.log(1 / 0.07))
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    raw = np.random.Philox(key=key).random_raw(math.prod(shape))
    uniform = (raw >> np.uint64(40)).astype(np.float64) / 2**23 - 1
    leaf = name.rpartition(".")[2]
    if leaf == "relative_position_bias_table":
        value = uniform / 2
    elif leaf == "bias":
        value = uniform / 10
    elif len(shape) == 1:
        value = 1 + uniform / 5
    else:
        gains = {"label_embed": 4.0, "fc.weight": 2.0, "wordvec_proj.weight": 12.0}
        gain = gains.get(name, 1.0)
        gain = 1.5 if ".mlp." in name or ".attn.qkv" in name else gain
        gain = 3.0 if "crossattention.self.query" in name or "crossattention.self.key" in name else gain
        inputs = 512 if name == "label_embed" else math.prod(shape[1:])
        value = uniform * math.sqrt(3 / inputs) * gain
    return torch.from_numpy(value.astype(np.float32).reshape(shape))


def drawn_image(height: int, width: int, seed: int) -> Image.Image:
    """Gradients, blocks and noise in whole numbers: the image that the golden numbers are for."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 255 // (height + width - 2)], -1)
    for top, left, tall, wide, color, _ in np.random.Philox(key=seed).random_raw(72).reshape(12, 6).tolist():
        top, left, tall, wide = top % height, left % width, 20 + tall % (height // 3), 20 + wide % (width // 3)
        image[top : top + tall, left : left + wide] = [(color >> shift) & 255 for shift in (16, 8, 0)]
    noise = np.random.Philox(key=seed + 1).random_raw(height * width * 3) % np.uint64(31)
    noisy = image + noise.astype(np.int64).reshape(height, width, 3) - 15
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


GOLDEN = {
    "ram": [-1.659984, -3.029892, -4.753809, 0.091603, -1.591289, 0.142262, -3.373094, -2.288257],
    "ram_plus": [-1.637626, -0.52385, -2.435334, -2.914363, -1.01959, -1.71537, -3.182127, -1.380353],
}
"""Upstream's first logits for `drawn_image(427, 640, 11)`: transformers 4.36.2, timm 0.4.12, torch 2.13, float32."""


@pytest.mark.parametrize("family", ["ram", "ram_plus"])
def test_logits_equal_upstreams_golden_numbers(family: str) -> None:
    """The known answer that needs no data from outside: image, preprocessing and network, to 5e-5."""
    settings = RamSettings(
        family=family, image_size=384, embed_dim=32, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8], window=12,
        head_width=96, head_heads=4, head_feed_forward=384,
    )  # fmt: skip
    network = Ram(settings, 64).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(drawn_parameter(name, tuple(parameter.shape)))
        logits = network(normalize(resize(drawn_image(427, 640, 11), 384))[None])[0]
    assert np.abs(logits[:8].numpy() - GOLDEN[family]).max() < TOLERANCE


@pytest.mark.parametrize(("family", "keys"), [("ram", "ram_keys.txt"), ("ram_plus", "ram_plus_keys.txt")])
def test_full_size_network_has_upstreams_keys_and_shapes(family: str, keys: str) -> None:
    """The defaults are the official networks: every inference tensor of upstream's state dict, and no other."""
    upstream = {}
    for line in shared(f"ram/{keys}").read_text().splitlines():
        if line.startswith("#") or not line.strip():
            continue
        name, _, rest = line.partition(" ")
        if name.startswith(("tag_encoder.", "text_decoder.")) or name.endswith(
            ("relative_position_index", "attn_mask")
        ):
            continue
        upstream[name] = tuple(int(edge) for edge in rest[1 : rest.index(")")].split(",") if edge.strip())
    with torch.device("meta"):
        network = Ram(RamSettings(family=family), 4585)
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == upstream


def test_preprocessing_equals_upstreams() -> None:
    """Bilinear with antialias on 8-bit pixels, to one grey level: Pillow 13 rounds other than the 12.3 that made the
    reference (which this equals exactly). Bicubic (the usual demo's) is off by up to 22 levels, no antialias by 50."""
    expected = np.load(shared("ram/input_384.npz"), allow_pickle=False)["input"]
    for row, name in enumerate(("image0.png", "image1.png")):
        found = normalize(resize(Image.open(shared(f"ram/{name}")).convert("RGB"), 384)).numpy()
        levels = np.abs(found - expected[row]) * STD.numpy() * 255
        assert levels.max() < 1.01
        assert levels.mean() < 0.3


def test_preprocessing_is_upstreams_transform_pixel_for_pixel() -> None:
    """The same two images through torchvision's Resize, ToTensor and Normalize, as upstream has them, with the Pillow
    that is installed: not one bit differs."""
    upstream = transforms.Compose(
        [
            transforms.Resize((384, 384)),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    for image in (drawn_image(427, 640, 11), drawn_image(640, 480, 22)):
        assert torch.equal(normalize(resize(image, 384)), upstream(image))


SMALL = RamSettings(
    image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window=4, embed_width=8, head_width=12, head_heads=2,
    head_feed_forward=16, descriptions=3,
)  # fmt: skip


def test_a_training_checkpoint_is_converted_once(tmp_path: Path, own_cache: Path) -> None:
    """5.6 GB with optimizer state would be read by every worker of every run; what is kept holds the network only, and
    a file with other contents is converted anew."""
    for seed in (1, 2):
        torch.manual_seed(seed)
        network = Ram(SMALL, 7)
        optimizer = {number: torch.zeros(50_000) for number in range(4)}
        torch.save({"model": network.state_dict(), "optimizer": optimizer}, tmp_path / "ram.pth")
        before = set(own_cache.glob("converted/ram-*"))
        load_ram(Ram(SMALL, 7), tmp_path / "ram.pth")
        (kept,) = set(own_cache.glob("converted/ram-*")) - before
        with safe_open(kept / "ram.safetensors", "pt") as tensors:
            assert set(tensors.keys()) == network.state_dict().keys()
        assert (kept / "ram.safetensors").stat().st_size < (tmp_path / "ram.pth").stat().st_size / 4
        changed = (kept / "ram.safetensors").stat().st_mtime_ns
        again = load_ram(Ram(SMALL, 7), tmp_path / "ram.pth")
        assert (kept / "ram.safetensors").stat().st_mtime_ns == changed
        assert torch.equal(again.wordvec_proj.weight, network.wordvec_proj.weight)
    assert not list(own_cache.glob("converted/.*.partial"))


def test_a_checkpoint_of_the_other_family_is_named(tmp_path: Path) -> None:
    """RAM++ weights given as RAM used to be a size mismatch deep inside torch (recognize-anything #129)."""
    plus = SMALL.model_copy(update={"family": "ram_plus"})
    torch.save(Ram(plus, 5).state_dict(), tmp_path / "plus.pth")
    with pytest.raises(UserError, match=r"checkpoint of ram_plus, and tagger\.family is ram"):
        load_ram(Ram(SMALL, 5), tmp_path / "plus.pth")


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    """A .pth from an unknown place must not run code when it is loaded."""
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (ran,)

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="can't be read as a checkpoint"):
        load_ram(Ram(SMALL, 5), tmp_path / "evil.pth")
    assert not ran.exists()


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    torch.save(Ram(SMALL, 5).state_dict(), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save(
        {"image_encoder.pos_embed": torch.zeros(1), "mask_decoder.iou_token.weight": torch.zeros(1)},
        tmp_path / "sam.pth",
    )
    for name, message in (("cut.pth", "truncated"), ("text.safetensors", "truncated"), ("sam.pth", "look like SAM")):
        with pytest.raises(UserError, match=message):
            load_ram(Ram(SMALL, 5), tmp_path / name)
    with pytest.raises(UserError, match=r"it has 5 labels, and the tag list has 6 lines; give the tag list"):
        load_ram(Ram(SMALL, 6), tmp_path / "whole.pth")
