"""Loading: dtype, device, kernels, quantisation, the config that comes out, names on the hub."""

from __future__ import annotations

import inspect

import huggingface_hub
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llava.model import LlavaConfig, LlavaLlamaForCausalLM, reading
from llava.model.builder import load_pretrained_model

from .. import checkpoints, tiny
from ..answers import answer, ask, check, inputs, refused
from ..closeness import FLOAT32, assert_close


class TestOptions:
    @pytest.mark.parametrize("folder", ["original", "hf"])
    @pytest.mark.parametrize(
        ("asked", "got"),
        [
            ("auto", torch.float16),
            ("float32", torch.float32),
            ("float16", torch.float16),
            ("bfloat16", torch.bfloat16),
            (torch.bfloat16, torch.bfloat16),
        ],
    )
    def test_dtype(self, request, folder, asked, got):
        model = load_pretrained_model(request.getfixturevalue(folder), dtype=asked, device="cpu")[1]
        # The CLIP checkpoint is in float32, whatever the language model is in.
        assert {p.dtype for p in model.parameters()} == {got}
        assert model.dtype == got
        # Rotary frequencies in half precision would move positions far behind the image.
        assert model.model.rotary_emb.inv_freq.dtype == torch.float32

    def test_dtype_auto_where_the_config_does_not_say(self, tmp_path):
        folder = checkpoints.write_original(tmp_path, torch_dtype=...)
        model = load_pretrained_model(folder, device="cpu")[1]
        assert {p.dtype for p in model.parameters()} == {torch.float16}

    @pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
    def test_device_map(self, original, expected, device_map, monkeypatch):
        # "auto" would take a GPU, whose sums are in another order.
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        load, seen = LlavaLlamaForCausalLM.from_pretrained, {}

        def from_pretrained(*args, **options):
            seen.update(options)
            return load(*args, **options)

        monkeypatch.setattr(LlavaLlamaForCausalLM, "from_pretrained", from_pretrained)
        loaded = load_pretrained_model(original, dtype="float32", device_map=device_map)
        assert seen["device_map"] == device_map
        check(ask(loaded), expected)

    def test_attention_implementations_agree(self, original, expected):
        loaded = load_pretrained_model(
            original, dtype="float32", device="cpu", attn_implementation="eager"
        )
        model = loaded[1]
        tower = model.get_vision_tower()
        assert model.config._attn_implementation == tower.config._attn_implementation == "eager"
        result = ask(loaded)
        assert_close(result.logits, expected.logits, FLOAT32)
        assert result.tokens == expected.tokens

    def test_the_device_given_is_where_everything_is(self, original):
        model = load_pretrained_model(original, device="meta")[1]
        assert {p.device.type for p in model.parameters()} == {"meta"}

    @pytest.mark.parametrize("bits", ["load_4bit", "load_8bit"])
    def test_quantised_weights_go_to_the_device_given(self, original, monkeypatch, bits):
        seen = {}

        def from_pretrained(*_, **options):
            seen.update(options)
            raise InterruptedError

        monkeypatch.setattr("llava.model.builder.is_bitsandbytes_available", lambda: True)
        monkeypatch.setattr(LlavaLlamaForCausalLM, "from_pretrained", from_pretrained)
        for device, device_map in (("cuda:1", {"": "cuda:1"}), (None, "auto")):
            with pytest.raises(InterruptedError):
                load_pretrained_model(original, device=device, **{bits: True})
            assert seen["device_map"] == device_map
            assert getattr(seen["quantization_config"], bits.replace("load_", "load_in_"))

    def test_arguments_keep_the_places_that_llava_users_know(self):
        names = list(inspect.signature(load_pretrained_model).parameters)
        assert names[:8] == [
            "model_path", "model_base", "model_name", "load_8bit", "load_4bit", "device_map",
            "device", "use_flash_attn",
        ]  # fmt: skip

    @pytest.mark.parametrize(("value", "length"), [(..., 4096), (None, 4096), (512, 512)])
    def test_context_length(self, tmp_path, value, length):
        folder = checkpoints.write_original(tmp_path, max_sequence_length=value)
        assert load_pretrained_model(folder, device="cpu")[3] == length


def test_the_config_of_a_loaded_model(original, tmp_path):
    model = load_pretrained_model(original, device="cpu")[1]
    config = model.config
    assert type(config) is LlavaConfig and config.model_type == "llava_llama"
    assert config.rope_parameters == {"rope_theta": 10000.0, "rope_type": "default"}
    assert (config.image_aspect_ratio, config.mm_vision_select_layer) == ("pad", -2)
    assert config.freeze_mm_mlp_adapter is False
    assert model.generation_config.eos_token_id == 2

    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is LlavaConfig
    # JSON has no numbers as keys.
    left_out = ("mm_vision_config", "transformers_version", "_name_or_path")
    ours, theirs = config.to_dict(), again.to_dict()
    assert {k: v for k, v in ours.items() if k not in left_out} == {
        k: v for k, v in theirs.items() if k not in left_out
    }
    for key in ("hidden_size", "num_hidden_layers", "image_size", "patch_size", "hidden_act"):
        assert ours["mm_vision_config"][key] == theirs["mm_vision_config"][key]
    with torch.device("meta"):
        rebuilt = AutoModelForCausalLM.from_config(again)
    assert type(rebuilt) is LlavaLlamaForCausalLM
    assert rebuilt.state_dict().keys() == model.state_dict().keys()
    assert LlavaConfig(**ours).to_dict() == ours


def test_generation_ends_at_the_tokenizers_end(tmp_path):
    """Configs made by other tools have named other tokens."""
    folder = checkpoints.write_original(tmp_path, eos_token_id=7, bos_token_id=8, pad_token_id=9)
    generation = load_pretrained_model(folder, device="cpu")[1].generation_config
    ids = generation.bos_token_id, generation.eos_token_id, generation.pad_token_id
    assert ids == (1, 2, 0)


def test_a_pad_token_without_a_row_is_never_fed_to_the_model(tmp_path, expected):
    folder = checkpoints.write_original(tmp_path)
    checkpoints.write_json(folder / "added_tokens.json", {"<pad>": tiny.VOCAB})
    checkpoints.edit_json(folder / "special_tokens_map.json", pad_token="<pad>")
    tokenizer, model, *rest = load_pretrained_model(folder, device="cpu", dtype="float32")
    assert tokenizer.pad_token_id == tiny.VOCAB
    ids, pixels = inputs((tokenizer, model, *rest))
    both = torch.cat([ids, ids.roll(1, 1)])
    # The first sample ends at its first token, the second goes on.
    tokens = model.generate(both, images=pixels.repeat(2, 1, 1, 1), max_new_tokens=6,
                            do_sample=False, eos_token_id=expected.tokens[0])  # fmt: skip
    assert tokens.shape == (2, 6) and tokens.max() < tiny.VOCAB


class TestHub:
    def test_a_name_is_downloaded(self, original, expected, monkeypatch):
        asked = []

        def download(name, **options):
            asked.append((name, options))
            return str(original)

        monkeypatch.setattr(reading, "snapshot_download", download)
        check(answer("liuhaotian/llava-v1.5-tiny"), expected)
        # CLIP's repository has its weights three times over.
        only = {"ignore_patterns": ["*.h5", "*.msgpack"]}
        assert asked == [("liuhaotian/llava-v1.5-tiny", only)]

    def test_the_tower_is_downloaded(self, tmp_path, expected, monkeypatch):
        folder = checkpoints.write_original(tmp_path / "llava", tower=False)
        checkpoints.write_clip(tmp_path / "clip")
        monkeypatch.setattr(reading, "snapshot_download", lambda name, **_: tmp_path / "clip")
        check(answer(folder), expected)

    def test_what_is_downloaded_is_said_before(self, original, monkeypatch, caplog):
        def download(name, **_):
            assert f"{name} is downloaded from the Hugging Face hub" in caplog.text
            return str(original)

        monkeypatch.setattr(reading, "snapshot_download", download)
        load_pretrained_model("liuhaotian/llava-v1.5-tiny", device="cpu")

    def test_without_a_connection(self, monkeypatch):
        def download(name, **_):
            raise ConnectionError("offline")

        monkeypatch.setattr(reading, "snapshot_download", download)
        message = r"me/llava is neither a folder .*ConnectionError.*download it and give its folder"
        with pytest.raises(FileNotFoundError, match=message):
            load_pretrained_model("me/llava")

    @pytest.mark.parametrize("name", ["./me/llava", "/me/llava", "llava", "a/b/llava", "../llava"])
    def test_a_path_is_never_looked_up(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.delattr(reading, "snapshot_download")
        with pytest.raises(FileNotFoundError, match=f"no folder {name}"):
            load_pretrained_model(name)

    @pytest.mark.parametrize("argument", ["model_path", "model_base", "vision_tower"])
    def test_a_name_whose_first_part_is_a_folder_here_is_a_path(
        self, argument, original, tmp_path, monkeypatch
    ):
        checkpoints.write_projector_only(tmp_path / "mine", tmp_path / "base")
        monkeypatch.chdir(tmp_path)
        (tmp_path / "models").mkdir()
        monkeypatch.delattr(reading, "snapshot_download")
        paths = {"model_path": tmp_path / "mine", "model_base": tmp_path / "base"}
        with pytest.raises(FileNotFoundError, match="no folder models/llava: models is a folder"):
            load_pretrained_model(**{**paths, argument: "models/llava"})

    def test_so_is_a_tower_that_the_config_names(self, tmp_path, monkeypatch):
        """The first part may lie beside the checkpoint, too."""
        folder = checkpoints.write_original(tmp_path / "llava", tower=False)
        (folder / checkpoints.CLIP).parent.mkdir()
        monkeypatch.delattr(reading, "snapshot_download")
        refused(folder, f"no folder {checkpoints.CLIP}: openai is a folder here",
                error=FileNotFoundError)  # fmt: skip

    @pytest.mark.parametrize("how", ["argument", "variable", "library"])
    def test_offline_nothing_is_asked_for(self, how, tmp_path, monkeypatch):
        monkeypatch.delattr(reading, "snapshot_download")
        monkeypatch.setattr(reading, "try_to_load_from_cache", lambda name, file: None)
        if how == "variable":
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        elif how == "library":
            monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        options = {"offline": True} if how == "argument" else {}
        for name in ("me/llava", "not a name/of the hub"):
            with pytest.raises(FileNotFoundError, match="offline nothing is"):
                load_pretrained_model(name, **options)
        projector = tmp_path / "projector"
        checkpoints.write_projector_only(projector, tmp_path / "base", mm_vision_tower="me/clip")
        for base in ("me/base", tmp_path / "base"):
            with pytest.raises(FileNotFoundError, match="offline nothing is"):
                load_pretrained_model(projector, base, **options)

    def test_offline_the_cache_of_the_hub_is_read(self, original, expected, monkeypatch):
        cached = str(original / "config.json")
        monkeypatch.setattr(reading, "try_to_load_from_cache", lambda name, file: cached)
        check(answer("me/llava", offline=True), expected)
