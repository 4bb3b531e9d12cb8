"""docs/serving.md: its command and its Python lines run, and what they export carries over."""

from __future__ import annotations

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from llava import mm_utils, pruning
from llava.analysis import keep
from llava.cli import dispatch
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.checkpoint import convert

from ..closeness import assert_close
from .conftest import DEMO, QUESTION, ROOT

TEXT = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.fixture
def here(wide, tmp_path, monkeypatch) -> Path:
    wide.save(tmp_path / "picture.jpg")
    (tmp_path / "playground").symlink_to(ROOT / "playground")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_exports_ids_and_embeddings(here) -> None:
    (command,) = re.findall(r"```bash\nautoprune (.*?)```", TEXT, flags=re.DOTALL)
    assert dispatch(shlex.split(command.replace("\\\n", " "))) == 0
    exported = json.loads((here / "kept.json").read_text())
    assert exported["grid"] == 24 and list(exported["methods"]) == ["fastervlm-64", "divprune-64"]
    for method in exported["methods"].values():
        assert method["before_decoder"] and len(method["kept"]) == 13
        assert len(method["kept"][0]) == len(set(method["kept"][0])) == 64
    code = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)[0]
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert torch.load(here / "embeds.pt").shape == scope["merged"][None].shape == (1, 64, 192)


def test_what_is_decided_in_the_decoder_says_so(demo, here, monkeypatch) -> None:
    monkeypatch.setattr(keep, "load_any", lambda args: (*demo, 2048))
    flags = ["--image", "picture.jpg", "--question", QUESTION, "--max-new-tokens", "1"]
    assert keep.main([*flags, "--method", "autoprune:64", "--out", "new/kept.json"]) == 0
    (method,) = json.loads((here / "new" / "kept.json").read_text())["methods"].values()
    assert not method["before_decoder"]
    assert [len(ids) for ids in method["kept"]][:2] == [576, 160]
    layer = next(i for i, groups in enumerate(method["merged"]) if groups)
    centre, ids = next(iter(method["merged"][layer].items()))
    assert int(centre) in method["kept"][layer] and len(ids) > 1


@pytest.fixture(scope="module")
def both(demo, tmp_path_factory) -> tuple[Any, Any]:
    """The embedded checkpoint and stock LLaVA with its weights, in float64."""
    target = tmp_path_factory.mktemp("stock") / "llava-hf"
    convert(DEMO, target, "llava-hf")
    stock = AutoModelForImageTextToText.from_pretrained(target, dtype=torch.float64).eval()
    return copy.deepcopy(demo[1]).double(), stock


SELECTING = ["random", "uniform-grid", "divprune", "dpp", "holov", "id-selection"]
SELECTING += ["fastervlm", "hired", "vispruner"]
MERGING = ["visionzip", "prumerge+"]


@pytest.mark.parametrize("method", SELECTING + MERGING)
def test_stock_llava_takes_what_is_exported(demo, wide, both, method: str) -> None:
    (ours, stock), (tokenizer, _, image_processor) = both, demo
    pruner = pruning.build(method, target_token_num=64)
    inputs = mm_utils.ask(QUESTION, [wide], tokenizer, image_processor, ours)
    options = {"max_new_tokens": 3, "return_dict_in_generate": True}
    heads: dict[str, list[torch.Tensor]] = {"ours": [], "stock": []}
    for name, model in (("ours", ours), ("stock", stock)):
        model.lm_head.register_forward_hook(
            lambda _, __, output, name=name: heads[name].append(output[0, -1, :720])
        )
    pictures = {name: inputs[name] for name in ("images", "image_sizes")}
    with torch.inference_mode():
        expected = ours.generate(**inputs, pruner=pruner, **options)
        kept = expected.past_key_values.trace.kept_patches(0)
        if method in MERGING:
            visual = ours.encode_images(**pictures, pruner=pruner)[0].embeds
        else:
            visual = ours.encode_images(**pictures)[0].embeds[kept[0]]
        assert len(visual) == len(kept[0]) <= 64 and len(set(map(tuple, kept))) == 1
        ids = inputs["inputs"][0]
        at = (ids == IMAGE_TOKEN_INDEX).nonzero().item()
        words = stock.get_input_embeddings()
        embeds = torch.cat([words(ids[:at]), visual, words(ids[at + 1 :])])[None]
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        output = stock.generate(inputs_embeds=embeds, attention_mask=mask, **options)
    assert output.sequences.tolist() == expected.sequences.tolist()
    assert_close(torch.stack(heads["stock"]), torch.stack(heads["ours"]))
