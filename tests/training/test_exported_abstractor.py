"""An exported model that stock LLaVA can't express brings its own code along, and `pad chat` never runs that code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from pad_pipeline.training.chat import Chat
from pad_pipeline.training.export import export_llava
from pad_pipeline.training.template import IMAGE, Template
from tests.training.exported_processors import heard, user
from tests.training.trained_models import asked, build, difference, view_for

pytestmark = pytest.mark.usefixtures("no_gpu")


ABSTRACTOR = {"projector": "c-abstractor", "abstractor_tokens": 9}


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_abstractor_gives_our_logits_by_our_classes(parts: Path, tower: str, tmp_path: Path) -> None:
    """Catches an image with as many marks as it has patches, sizes that are lost on the way, and a folder that stock
    code takes for stock LLaVA, whose projector it would invent."""
    model = build(parts, "qwen2", tower, **ABSTRACTOR)
    export_llava(model, view_for(model), tmp_path)
    chat = Chat(tmp_path)
    assert difference(model, chat.model) < 1e-5
    assert chat.model.config.image_seq_length == model.vision_tokens == 9
    usual = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=False)
    for processor in (chat.processor, usual):
        asking = Template("v1", model.tokenizer)
        assert heard(processor, [user("What?")], 9) == asking.question("What?")
    assert chat.answer(Image.new("RGB", (30, 20)), "What?", 4) is not None
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForImageTextToText.from_pretrained(tmp_path, trust_remote_code=False)


ALONE = """
import json, sys
import torch
sys.modules.update(dict.fromkeys(["pad_pipeline", "workflows", "stages"]))  # importing them fails
from transformers import AutoModelForImageTextToText
folder = sys.argv[1]
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
inputs = torch.load(f"{folder}/inputs.pt")
torch.save(model(**inputs).logits, f"{folder}/logits.pt")
said = model.generate(**inputs, max_new_tokens=3, do_sample=False)
assert said.shape[1] > inputs["input_ids"].shape[1]
"""


@pytest.mark.parametrize("projector", ["c-abstractor", "pixel-shuffle"])
def test_own_projectors_load_where_this_project_is_not(parts: Path, projector: str, tmp_path: Path) -> None:
    """The folder is loaded in a process that can't import this project. Catches a module that is not copied, and an
    import of ours that stays."""
    model = build(parts, **ABSTRACTOR | {"projector": projector})
    export_llava(model, view_for(model), tmp_path)
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    ids, ours = asked(model, pixels)
    image = [json.loads((tmp_path / "config.json").read_text())["image_token_index"]] * model.vision_tokens
    whole = torch.tensor([[one for token in ids for one in (image if token == IMAGE else [token])]])
    torch.save({"input_ids": whole, "pixel_values": pixels}, tmp_path / "inputs.pt")
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, tmp_path], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    theirs = torch.load(tmp_path / "logits.pt")[0]
    assert (theirs[:, : ours.shape[1]] - ours).abs().max() < 1e-5


def test_chat_runs_no_code_of_the_folder(parts: Path, tmp_path: Path) -> None:
    """The folder has Python files that would do anything. Catches a `pad chat` that runs them instead of our own
    classes."""
    model = build(parts, **ABSTRACTOR)
    export_llava(model, view_for(model), tmp_path)
    trap = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\nraise SystemExit('it ran')\n"
    for name in ("abstractor.py", "llava_abstractor.py", "custom_generate/generate.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(trap)
    for name in ("processor_config.json", "tokenizer_config.json"):
        config = json.loads((tmp_path / name).read_text())
        code = {"AutoProcessor": "abstractor.P", "AutoTokenizer": ["abstractor.T", "abstractor.T"]}
        (tmp_path / name).write_text(json.dumps(config | {"auto_map": code}))
    assert Chat(tmp_path).answer(Image.new("RGB", (30, 20)), "What?", 4) is not None
    assert not (tmp_path / "ran").exists()
