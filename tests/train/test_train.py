"""Tokenizer, packed turns, resumable training and the exported checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import load_image_processor, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.tokenizer import LlavaTokenizer, load_tokenizer
from llava.train.data import EOS, Batch, TurnEncoder, choose_patches, make_batch
from llava.train.drawing import render
from llava.train.export import export, llava_config
from llava.train.model import DemoModel, Shape
from llava.train.muon import Muon, orthogonal
from llava.train.recipe import DEMO, Stage
from llava.train.scenes import TRAINING_SEEDS, Scene, Style, make_scene
from llava.train.tokenizer import corpus, kept_tokenizer, train_tokenizer, write_tokenizer
from llava.train.trainer import StageData, Trainer
from llava.train.turns import Turn, View, validation_turns
from llava.train.vocabulary import UNSEEN_WORDS, WORDS
from llava.train.warm_start import start_from
from tests.closeness import FLOAT32, assert_close, difference

TINY = Shape(
    hidden_size=32,
    intermediate_size=48,
    layers=2,
    heads=2,
    vision_hidden_size=32,
    vision_intermediate_size=48,
    vision_layers=3,
    vision_heads=2,
)
WINDOW = Style(window=112, things=(1, 2), signs=(0, 1))
STAGES = (
    Stage("see", 1, 2, WINDOW, WINDOW, rate=1e-3),
    Stage("answer", 2, 2, WINDOW, WINDOW, rate=1e-3, turns=2, length=200, visual=20),
)


def _turns(scene: Scene) -> list[Turn]:
    """A few of the validation questions, one with its picture hidden and one without any."""
    seen = [turn for _, turn in validation_turns(scene)[:4]]
    return [*seen, replace(seen[0], view=View.HIDDEN), replace(seen[1], view=View.NOTHING)]


@pytest.fixture(scope="module")
def tokenizer_model() -> bytes:
    return train_tokenizer(corpus())


@pytest.fixture(scope="module")
def tokenizer(tokenizer_model: bytes, tmp_path_factory: pytest.TempPathFactory) -> LlavaTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, tokenizer_model)
    return load_tokenizer(folder)


def _model() -> DemoModel:
    torch.manual_seed(0)
    return DemoModel(TINY)


def _trainer(work: Path, tokenizer: LlavaTokenizer, stages: tuple[Stage, ...] = STAGES) -> Trainer:
    cpu = torch.device("cpu")
    return Trainer(_model(), stages, tokenizer, work, device=cpu, bfloat16=False, workers=0)


def test_tokenizer_is_deterministic_and_shaped_like_llamas(
    tokenizer_model: bytes, tokenizer: LlavaTokenizer
) -> None:
    assert train_tokenizer(corpus()) == tokenizer_model
    assert len(tokenizer) == Shape().vocab_size
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "<0x0A>"]) == [0, 1, 2, 13]
    for text in ("STOP", "yellow", "bottom right", "two  spaces", "42", "unseen wörds\n"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert 0 not in ids
        assert tokenizer.decode(ids) == text
    assert len(tokenizer("yellow", add_special_tokens=False).input_ids) == 1
    # signs are spelt, so that a word that training never shows can be read
    for word in (*WORDS, *UNSEEN_WORDS):
        assert len(tokenizer(word.upper(), add_special_tokens=False).input_ids) >= len(word) - 1


def test_a_run_that_goes_on_keeps_the_ids_it_began_with(tmp_path: Path) -> None:
    first = kept_tokenizer(tmp_path, lambda: ["one line", "another line"], vocab_size=300)
    assert first == train_tokenizer(["one line", "another line"], 300)
    assert kept_tokenizer(tmp_path, lambda: ["questions changed"], vocab_size=300) == first


def test_each_packed_turn_is_the_evaluation_prompt(tokenizer: LlavaTokenizer) -> None:
    scenes = [make_scene(seed, WINDOW) for seed in TRAINING_SEEDS[:2]]
    conversations = [_turns(scene) for scene in scenes]
    turns = TurnEncoder(tokenizer).pack(conversations)
    for row, conversation in enumerate(conversations):
        for number, turn in enumerate(conversation):
            prompt = conv_templates["vicuna_v1"].copy()
            image = "" if turn.view == View.NOTHING else "<image>\n"
            prompt.append_message(prompt.roles[0], image + turn.text)
            prompt.append_message(prompt.roles[1], None)
            expected = tokenizer_image_token(prompt.get_prompt(), tokenizer)
            mine = turns.turn[row] == number
            ids, labels = turns.ids[row, mine].tolist(), turns.labels[row, mine]
            n_prompt = int((labels == IGNORE_INDEX).sum())
            before = [*turns.prefix.tolist(), IMAGE_TOKEN_INDEX] if image else []
            assert [*before, *ids[:n_prompt]] == expected
            assert labels[n_prompt:].tolist() == ids[n_prompt:]
            assert ids[-1] == EOS
            assert tokenizer.decode(ids[n_prompt:]).strip() == turn.answer
            assert turns.offset[row, mine].tolist() == list(range(len(ids)))
            assert set(turns.view[row, mine].tolist()) == {turn.view}


def test_a_row_is_cut_between_turns(tokenizer: LlavaTokenizer) -> None:
    conversation = _turns(make_scene(TRAINING_SEEDS[0], WINDOW))
    whole = TurnEncoder(tokenizer).pack([conversation])
    lengths = [int((whole.turn == number).sum()) for number in range(len(conversation))]
    cut = TurnEncoder(tokenizer).pack([conversation], length=lengths[0] + lengths[1])
    assert cut.ids[0].tolist() == whole.ids[0, : lengths[0] + lengths[1]].tolist()


def _logits(
    model: DemoModel,
    encoder: TurnEncoder,
    scene: Scene,
    turns: list[Turn],
    visual: int | None = None,
) -> torch.Tensor:
    batch = make_batch([scene], encoder.pack([turns]), visual)
    selected, _ = model.see(batch.normalised(), batch.corners)
    return model.answer(selected, batch)[0]


def test_a_packed_turn_is_answered_as_if_alone(tokenizer: LlavaTokenizer) -> None:
    model, encoder = _model().eval(), TurnEncoder(tokenizer)
    scene = make_scene(TRAINING_SEEDS[3], WINDOW)
    conversation = _turns(scene)
    with torch.no_grad():
        together = _logits(model, encoder, scene, conversation, visual=20)
        alone = [_logits(model, encoder, scene, [turn], visual=20) for turn in conversation]
    assert_close(together, torch.cat(alone), FLOAT32)


def test_a_hidden_picture_makes_no_difference(tokenizer: LlavaTokenizer) -> None:
    model, encoder = _model().eval(), TurnEncoder(tokenizer)
    one, other = (make_scene(seed, WINDOW) for seed in TRAINING_SEEDS[3:5])
    for view, same in ((View.HIDDEN, True), (View.NOTHING, True), (View.PICTURE, False)):
        turns = [replace(turn, view=view) for turn in _turns(one)[:3]]
        with torch.no_grad():
            found = [_logits(model, encoder, scene, turns) for scene in (one, other)]
        gap = difference(*found)
        assert gap < FLOAT32 if same else gap > 1e-2, view


def test_patches_are_chosen_from_every_item_and_the_ground() -> None:
    weight = torch.zeros(576)
    weight[:4], weight[100:200] = 1 / 4, 1 / 100  # a small item and a large one
    kept = choose_patches(weight, 60, seed=0)
    assert len(kept) == len(kept.unique()) == 60 and kept.tolist() == sorted(kept.tolist())
    assert torch.equal(kept, choose_patches(weight, 60, seed=0))
    assert set(range(4)) <= set(kept.tolist())
    large = int(((kept >= 100) & (kept < 200)).sum())
    assert 20 < large < 54 and 60 - large - 4 > 5
    assert choose_patches(weight, None, seed=0).tolist() == list(range(576))


def test_muon_makes_updates_orthogonal() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 8, 20)
    for wide in (matrices, matrices.mT.contiguous()):
        values = torch.linalg.svdvals(orthogonal(wide))
        assert values.min() > 0.6 and values.max() < 1.3
    # five iterations on a matrix that is orthogonal already keep its directions
    basis = torch.linalg.qr(torch.randn(8, 8)).Q[None]
    assert torch.nn.functional.cosine_similarity(
        orthogonal(basis).flatten(), basis.flatten(), dim=0
    ) == pytest.approx(1, abs=1e-4)


def test_muon_descends() -> None:
    torch.manual_seed(0)
    target, weight = torch.randn(6, 4), torch.nn.Parameter(torch.zeros(6, 4))
    untouched = torch.nn.Parameter(torch.ones(2, 2))
    optimiser = Muon([weight, untouched], lr=0.05, weight_decay=0.0)
    losses = []
    for _ in range(200):
        loss = (weight - target).square().sum()
        losses.append(float(loss.detach()))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert losses[-1] < 0.05 * losses[0]
    assert torch.equal(untouched, torch.ones(2, 2))


def test_the_whole_picture_is_seen_as_clip_sees_it() -> None:
    model = _model().eval()
    scene = make_scene(7)
    batch = make_batch([scene], None)
    with torch.no_grad():
        states = model.tower(batch.normalised(), output_hidden_states=True).hidden_states
        selected, last = model.see(batch.normalised(), batch.corners)
    assert_close(selected, states[-2], FLOAT32)
    assert_close(last, states[-1], FLOAT32)


def test_stages_never_share_a_scene_and_ramp_their_style(tokenizer: LlavaTokenizer) -> None:
    easy = replace(WINDOW, letters=(30, 40))
    stage = Stage("s", 10, 2, easy, WINDOW, rate=1.0, ramp=0.5, warmup=2)
    assert stage.style(0).letters == (30, 40)
    assert stage.style(5) == stage.style(9) == WINDOW
    rates = [stage.learning_rate(step) for step in range(10)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert 0.05 < rates[-1] < 0.1 and rates[2:] == sorted(rates[2:], reverse=True)
    data = StageData(stage, TRAINING_SEEDS.start, TurnEncoder(tokenizer))
    assert len(data) == 10
    assert torch.equal(data[3].pixels, data[3].pixels)
    assert not torch.equal(data[3].pixels, data[4].pixels)
    with pytest.raises(ValueError, match="same window"):
        Stage("s", 1, 1, WINDOW, Style(), rate=1.0)


def test_resumed_training_equals_uninterrupted(tmp_path: Path, tokenizer: LlavaTokenizer) -> None:
    whole = _trainer(tmp_path / "whole", tokenizer)
    initial = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    whole.run()
    assert whole.finished

    for _ in range(10):  # a time limit of 0 stops after each step
        part = _trainer(tmp_path / "parts", tokenizer)
        if part.finished:
            break
        part.run(minutes=0)
    assert part.finished
    resumed, expected = part.model.state_dict(), whole.model.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(resumed[name], tensor), name
    changed = [name for name, tensor in expected.items() if not torch.equal(tensor, initial[name])]
    assert any(name.startswith("decoder.model.layers") for name in changed)
    assert any(name.startswith("tower.encoder") for name in changed)

    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert 0 <= log[-1]["validation"] <= 1


def test_a_checkpoint_of_another_recipe_is_refused(
    tmp_path: Path, tokenizer: LlavaTokenizer
) -> None:
    trainer = _trainer(tmp_path, tokenizer)
    trainer.run(minutes=0)
    later = (STAGES[0], replace(STAGES[1], steps=7))
    assert _trainer(tmp_path, tokenizer, later).step == trainer.step
    earlier = (replace(STAGES[0], batch=4), STAGES[1])
    with pytest.raises(ValueError, match="another recipe"):
        _trainer(tmp_path, tokenizer, earlier)


def test_a_later_stage_can_come_first(tmp_path: Path, tokenizer: LlavaTokenizer) -> None:
    trainer = _trainer(tmp_path, tokenizer)
    with pytest.raises(ValueError, match="no stage 'answers'; there are 'see', 'answer'"):
        trainer.skip_to("answers")
    trainer.skip_to("answer")
    trainer.run(minutes=0)
    assert (trainer.stage, trainer.step) == (1, 1)
    assert _trainer(tmp_path, tokenizer).stage == 1  # and goes on there
    with pytest.raises(ValueError, match="has begun already"):
        trainer.skip_to("answer")


def test_validation_is_greedy_decoding(tmp_path: Path, tokenizer: LlavaTokenizer) -> None:
    """Against answers decoded token by token, on a model that always says the same word."""
    trainer = _trainer(tmp_path, tokenizer)
    scenes = [make_scene(seed, WINDOW) for seed in range(1_000_000, 1_000_008)]
    asked = [(kind, turn.answer) for scene in scenes for kind, turn in validation_turns(scene)]
    (word,) = tokenizer("yes", add_special_tokens=False).input_ids

    def answer(selected: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, dict]:
        targets = batch.turns.labels[batch.turns.labels != IGNORE_INDEX]
        logits = torch.zeros(len(targets), TINY.vocab_size)
        logits[:, word] = 1.0
        logits[(targets == EOS).nonzero().flatten(), EOS] = 2.0
        return logits, targets, {}

    trainer.model.answer = answer
    found = trainer.validate(WINDOW, scenes=8, batch=4)
    right = sum(answer == "yes" for _, answer in asked) / len(asked)
    assert 0 < right < 1
    assert found["validation"] == pytest.approx(right, abs=1e-4)
    exists = [answer == "yes" for kind, answer in asked if kind == "exists"]
    assert found["exists"] == pytest.approx(sum(exists) / len(exists), abs=1e-4)


def test_a_still_tower_does_not_move(tmp_path: Path, tokenizer: LlavaTokenizer) -> None:
    stage = replace(STAGES[1], tower=0.0)
    trainer = _trainer(tmp_path, tokenizer, (stage,))
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.run()
    for name, tensor in trainer.model.state_dict().items():
        moves = name.startswith(("decoder.", "projector."))
        assert torch.equal(tensor, before[name]) != moves, name


@pytest.fixture(scope="module")
def exported(tokenizer_model: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export(_model(), tokenizer_model, folder)
    return folder


def test_training_can_start_from_an_exported_checkpoint(
    exported: Path, tokenizer: LlavaTokenizer, tmp_path: Path
) -> None:
    """Another vocabulary: pieces that both know keep their embedding, the others their own."""
    write_tokenizer(tmp_path, train_tokenizer(corpus(40), vocab_size=400))
    smaller = load_tokenizer(tmp_path)
    torch.manual_seed(1)
    model = DemoModel(replace(TINY, vocab_size=len(smaller)))
    fresh = model.decoder.lm_head.weight.clone()
    known = start_from(model, smaller, exported)
    assert 0 < known <= len(smaller)
    source = _model().half().float()
    new_pieces = smaller.convert_ids_to_tokens(range(len(smaller)))
    old_pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert known == len(set(new_pieces) & set(old_pieces))
    for index, piece in enumerate(new_pieces):
        mine = model.decoder.lm_head.weight[index]
        if piece in old_pieces:
            assert torch.equal(mine, source.decoder.lm_head.weight[old_pieces.index(piece)])
        else:
            assert torch.equal(mine, fresh[index])
    for part in ("tower", "projector"):
        for name, tensor in getattr(source, part).state_dict().items():
            assert torch.equal(getattr(model, part).state_dict()[name], tensor), name
    with pytest.raises(RuntimeError, match="size mismatch"):
        start_from(DemoModel(replace(TINY, layers=2, intermediate_size=32)), tokenizer, exported)


def test_exported_files(exported: Path) -> None:
    files = {str(p.relative_to(exported)) for p in exported.rglob("*") if p.is_file()}
    assert files == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vision_tower/config.json",
        "vision_tower/model.safetensors",
        "vision_tower/preprocessor_config.json",
    }


def test_exported_weights_have_llavas_names(exported: Path) -> None:
    weights = load_file(exported / "model.safetensors")
    layer = [f"self_attn.{p}_proj" for p in "qkvo"]
    layer += [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
    layer += ["input_layernorm", "post_attention_layernorm"]
    expected = {f"model.layers.{n}.{name}.weight" for n in range(2) for name in layer}
    expected |= {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    expected |= {f"model.mm_projector.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")}
    assert set(weights) == expected
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    projector = _model().projector[2].weight.half()
    assert torch.equal(weights["model.mm_projector.2.weight"], projector)


def test_exported_tower_loads_as_clip(exported: Path) -> None:
    names = set(load_file(exported / "vision_tower" / "model.safetensors"))
    assert all(name.startswith("vision_model.") for name in names)
    assert {
        "vision_model.embeddings.class_embedding",
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.position_embedding.weight",
        "vision_model.pre_layrnorm.weight",
        "vision_model.encoder.layers.2.self_attn.out_proj.bias",
        "vision_model.post_layernorm.bias",
    } <= names
    tower, info = CLIPVisionModel.from_pretrained(
        exported / "vision_tower", output_loading_info=True, dtype=torch.float32
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, tensor in _model().tower.state_dict().items():
        assert torch.equal(tower.state_dict()[name], tensor.half().float())


def test_exported_config_has_the_published_keys(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    assert config == llava_config(TINY)
    assert config["model_type"] == "llava_llama"
    assert (exported / config["mm_vision_tower"] / "config.json").is_file()
    assert config["mm_hidden_size"] == TINY.vision_hidden_size


def test_training_pixels_are_those_of_the_evaluation(exported: Path) -> None:
    """A sharp scene of the picture size: same crop, scale, mean and deviation."""
    scene = make_scene(3)
    processor = load_image_processor(exported / "vision_tower")
    assert list(processor.image_mean) == pytest.approx(OPENAI_CLIP_MEAN)
    config = type("Config", (), {"image_aspect_ratio": "pad"})
    expected = process_images([render(scene)], processor, config)
    assert_close(make_batch([scene], None).normalised(), expected, FLOAT32)


def test_the_demo_recipe_ends_on_the_benchmarks_scenes() -> None:
    assert DEMO[-1].end == Style()
    assert DEMO[-1].turns > 0
    assert Shape().layers >= 12


def test_the_loaded_checkpoint_answers_like_the_trained_model(
    exported: Path, tokenizer: LlavaTokenizer
) -> None:
    """Tower, window arithmetic, packing and export against the package's own model."""
    _, loaded, processor, _ = load_pretrained_model(exported, dtype="float32", device="cpu")
    trained = _model().half().float().eval()  # as rounded by the export
    scene = make_scene(11)
    turns = TurnEncoder(tokenizer).pack([_turns(scene)[:4]])
    batch = make_batch([scene], turns)
    config = type("Config", (), {"image_aspect_ratio": "pad"})
    pixels = process_images([render(scene)], processor, config)
    with torch.no_grad():
        selected, _ = trained.see(batch.normalised(), batch.corners)
        logits = trained.answer(selected, batch)[0]
        expected = []
        for number in range(int(turns.turn.max()) + 1):
            ids = turns.ids[0, turns.turn[0] == number]
            n_answer = int((turns.labels[0, turns.turn[0] == number] != IGNORE_INDEX).sum())
            image = torch.tensor([IMAGE_TOKEN_INDEX])
            whole = torch.cat([turns.prefix, image, ids])[None]
            out = loaded(input_ids=whole, images=pixels, image_sizes=[(336, 336)])
            expected.append(out.logits[0, -n_answer - 1 : -1])
    assert_close(logits, torch.cat(expected), FLOAT32)
