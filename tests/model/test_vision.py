"""The vision tower, the projector and what the decoder is told about each visual token."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig

from llava import pruning
from llava.mm_utils import letterbox_mask
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.pruning.layout import TEXT
from llava.pruning.vision import TowerRun
from tests import tiny
from tests.closeness import FLOAT32, assert_close


def tower(attn: str = "sdpa", select: int = -2) -> CLIPVisionTower:
    torch.manual_seed(0)
    config = CLIPVisionConfig(**tiny.vision_config())
    config._attn_implementation = attn
    made = CLIPVisionTower(config, select, "patch").eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return made


@pytest.mark.parametrize("select", [-2, -1, 1, 3])
@torch.no_grad()
def test_features_are_the_selected_hidden_state(select: int) -> None:
    made, images = tower(select=select), tiny.pixels(0, 2)
    expected = made.vision_tower(images, output_hidden_states=True).hidden_states[select]
    features = made(images)
    assert torch.equal(features.patches, expected[:, 1:])
    assert torch.equal(features.token, expected[:, 0])
    assert not features.probes


@torch.no_grad()
def test_the_cls_row_equals_the_eager_attention() -> None:
    made, images = tower("eager"), tiny.pixels(0, 2)
    attentions = made.vision_tower(images, output_attentions=True).attentions
    # hidden_states[-2] is the output of the last layer but one; its attention is attentions[-2].
    expected = attentions[-2][:, :, 0, 1:].mean(1)
    last = (made.run_layers - 1,)
    assert_close(made(images, probe=last).cls, expected, FLOAT32)
    assert_close(tower("sdpa")(images, probe=last).cls, expected, FLOAT32)
    assert (expected.sum(-1) < 1).all(), "the CLS token's own share is not a patch's"


@torch.no_grad()
def test_any_layer_can_be_probed_and_the_one_behind_the_features() -> None:
    made, images = tower("eager").double(), tiny.pixels(0, 2).double()
    attentions = made.vision_tower(images, output_attentions=True).attentions
    features = made(images, probe=(0, made.run_layers))
    assert sorted(features.probes) == [0, 2] and features.ran == 2
    for layer, probe in features.probes.items():
        expected = attentions[layer][:, :, 0, 1:]
        assert_close(probe.cls_attention().float(), expected.float(), FLOAT32)
    joined = features.probes[2].joined()
    attention = made.vision_tower.encoder.layers[2].self_attn
    states = made.vision_tower.encoder.layers[2].layer_norm1(
        torch.cat([features.token[:, None], features.patches], 1)
    )
    assert_close(joined.keys[:, 0], attention.k_proj(states))
    scores = attention.q_proj(states[:, :1]) @ attention.k_proj(states).mT * 32**-0.5
    assert_close(joined.cls_attention()[:, 0], scores.softmax(-1)[:, 0, 1:])


class Nothing(TowerRun):
    """Merges nothing, so that the loop around it can be compared with the stock one."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, tuple[int, ...]]] = []

    def bias(self) -> torch.Tensor:
        return torch.zeros(2, 1, 1, 17)

    def after_attention(self, layer, hidden, keys):
        self.seen.append((layer, tuple(keys.shape)))
        return hidden

    def patch(self) -> torch.Tensor:
        return torch.arange(16).expand(2, -1)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@torch.no_grad()
def test_the_merging_loop_is_the_stock_one_around_the_run(attn: str) -> None:
    made, images, run = tower(attn), tiny.pixels(0, 2), Nothing()
    features = made.merge(images, run)
    assert_close(features.patches, made(images).patches, FLOAT32)
    assert run.seen == [(0, (2, 4, 17, 8)), (1, (2, 4, 17, 8))]
    assert torch.equal(features.patch, run.patch())


@pytest.mark.parametrize(("select", "feature"), [(-5, "patch"), (4, "patch"), (-2, "cls_patch")])
def test_impossible_selections_are_refused(select: int, feature: str) -> None:
    with pytest.raises(ValueError, match="mm_vision_select"):
        CLIPVisionTower(CLIPVisionConfig(**tiny.vision_config()), select, feature)


def test_projectors() -> None:
    two = build_vision_projector("mlp2x_gelu", 3, 5)
    assert [type(m) for m in two] == [nn.Linear, nn.GELU, nn.Linear]
    assert sorted(dict(two.named_parameters())) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert two[0].weight.shape == (5, 3) and two[2].weight.shape == (5, 5)
    assert len(build_vision_projector("mlp1x_gelu", 3, 5)) == 1
    assert build_vision_projector("linear", 3, 5).weight.shape == (5, 3)
    x = torch.randn(2, 3)
    assert torch.equal(build_vision_projector("identity", 3, 3)(x), x)
    for unknown in ("mlp2x_relu", "resampler", "mlp0x_gelu", ""):
        with pytest.raises(ValueError, match="unknown mm_projector_type"):
            build_vision_projector(unknown, 3, 5)


@torch.no_grad()
def test_the_layout_describes_the_spliced_prompt() -> None:
    model = tiny.model(0)
    prompts = [tiny.prompt(1, before=2, after=4, images=2), tiny.prompt(2, before=1, after=3)]
    ids, mask = tiny.batch(prompts)
    images, sizes = tiny.pixels(0, 3), [(80, 20), (40, 40), (20, 80)]
    made = model.embed_prompt(
        ids, mask, images, sizes, pruner=pruning.build("autoprune", target_token_num=4)
    )
    layout = made.layout
    assert layout.lengths == (1 + 2 + 16 + 2 + 16 + 4, 1 + 1 + 16 + 3)
    assert layout.n_visual == (32, 16) and layout.tail == (4, 3)
    assert layout.image[0].tolist() == [TEXT] * 3 + [0] * 16 + [TEXT] * 2 + [1] * 16 + [TEXT] * 4
    assert layout.patch[0][layout.is_visual[0]].tolist() == list(range(32))
    pad = layout.n - layout.lengths[1]
    assert not layout.valid[1, :pad].any() and layout.valid[1, pad:].all()
    assert layout.position[1, pad:].tolist() == list(range(layout.lengths[1]))
    for row, image, size in ((0, 0, (80, 20)), (0, 1, (40, 40)), (1, 0, (20, 80))):
        here = layout.image[row] == image
        assert torch.equal(layout.letterbox[row][here], letterbox_mask(size, 4))
    encoded = model.encode_images(images, sizes, pruner=pruning.build("autoprune"))
    assert torch.equal(made.embeds[1, pad + 2 : pad + 18], encoded[2].embeds)
    assert torch.equal(layout.cls[1][layout.is_visual[1]], encoded[2].cls)
    assert torch.equal(made.embeds[0, :3], model.model.embed_tokens(prompts[0][:3]))


def test_right_padding_is_moved_to_the_left() -> None:
    model = tiny.model(0)
    a, b = tiny.prompt(1, after=3), tiny.prompt(2, after=8)
    ids = torch.stack([torch.cat([a, a.new_zeros(len(b) - len(a))]), b])
    mask = torch.tensor([[1] * len(a) + [0] * (len(b) - len(a)), [1] * len(b)])
    images = tiny.pixels(1, 2)
    right = model.generate(ids, images=images, attention_mask=mask, max_new_tokens=5)
    left_ids, left_mask = tiny.batch([a, b])
    left = model.generate(left_ids, images=images, attention_mask=left_mask, max_new_tokens=5)
    assert torch.equal(right, left)
