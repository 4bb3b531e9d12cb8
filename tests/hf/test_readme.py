"""The README's lines for stock models run as they stand, but for the checkpoint's name."""

from __future__ import annotations

import re
from pathlib import Path

from tests import checkpoints
from tests.answers import picture
from tests.model.test_processing import named

ROOT = Path(__file__).parents[2]


def test_the_lines_prune_a_stock_checkpoint(monkeypatch, tmp_path, capsys) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code, _ = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    folder = tmp_path / "llava-hf/llava-1.5-7b-hf"
    folder.mkdir(parents=True)
    named(checkpoints.write_hf(folder, "safetensors", "json"))
    made = {"processor_class": "LlavaProcessor", "patch_size": 14, "image_token": "<image>"}
    made |= {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    checkpoints.write_json(folder / "processor_config.json", made)
    picture().save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    # 8 of 16 visual tokens, in 6 layers.
    code, changed = re.subn("target_token_num=64", "target_token_num=8, x0=2.0", code)
    scope: dict = {}
    exec(code, scope)
    assert changed == 1 and scope["pruned"].trace.samples[0].n_visual == 16
    entering = scope["pruned"].trace.samples[0].entering
    assert entering[0] == 16 and entering[-1] < 8
    assert str(entering) in capsys.readouterr().out
