"""Prompts of every conversation template, compared with literal snapshots."""

from __future__ import annotations

import pytest

from llava.conversation import (
    Conversation,
    SeparatorStyle,
    conv_templates,
    default_conversation,
)

HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant "
    "gives helpful, detailed, and polite answers to the human's questions."
)
USER = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant "
    "gives helpful, detailed, and polite answers to the user's questions."
)
MMTAG = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is "
    "able to understand the visual content that the user provides, and assist the user with a "
    "variety of tasks using natural language.The visual content will be provided with the "
    "following format: <Image>visual content</Image>."
)
V0_EXAMPLE = (
    "###Human: What are the key differences between renewable and non-renewable energy sources?"
    "###Assistant: Renewable energy sources are those that can be replenished naturally in a "
    "relatively short amount of time, such as solar, wind, hydro, geothermal, and biomass. "
    "Non-renewable energy sources, on the other hand, are finite and will eventually be "
    "depleted, such as coal, oil, and natural gas. Here are some key differences between "
    "renewable and non-renewable energy sources:\n"
    "1. Availability: Renewable energy sources are virtually inexhaustible, while "
    "non-renewable energy sources are finite and will eventually run out.\n"
    "2. Environmental impact: Renewable energy sources have a much lower environmental impact "
    "than non-renewable sources, which can lead to air and water pollution, greenhouse gas "
    "emissions, and other negative effects.\n"
    "3. Cost: Renewable energy sources can be more expensive to initially set up, but they "
    "typically have lower operational costs than non-renewable sources.\n"
    "4. Reliability: Renewable energy sources are often more reliable and can be used in more "
    "remote locations than non-renewable sources.\n"
    "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to "
    "different situations and needs, while non-renewable sources are more rigid and "
    "inflexible.\n"
    "6. Sustainability: Renewable energy sources are more sustainable over the long term, while "
    "non-renewable sources are not, and their depletion can lead to economic and social "
    "instability.\n"
)
LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as "
    "possible, while being safe.  Your answers should not include any harmful, unethical, "
    "racist, sexist, toxic, dangerous, or illegal content. Please ensure that your responses "
    "are socially unbiased and positive in nature.\n\nIf a question does not make any sense, or "
    "is not factually coherent, explain why instead of answering something not correct. If you "
    "don't know the answer to a question, please don't share false information."
)
LLAVA_LLAMA_2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
MPT = (
    "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. The "
    "assistant gives helpful and honest answers.<|im_end|>"
)

# Prompt of: user "<image>\nWhat?", assistant "A cat.", user "Why?", assistant to answer.
SINGLE_TURNS = "###Human: <image>\nWhat?###Assistant: A cat.###Human: Why?###Assistant:"
TWO_TURNS = " USER: <image>\nWhat? ASSISTANT: A cat.</s>USER: Why? ASSISTANT:"
MPT_TURNS = (
    "<|im_start|>user\n<image>\nWhat?<|im_end|><|im_start|>assistant\nA cat.<|im_end|>"
    "<|im_start|>user\nWhy?<|im_end|><|im_start|>assistant\n"
)
PROMPTS = {
    "default": HUMAN + V0_EXAMPLE + SINGLE_TURNS,
    "v0": HUMAN + V0_EXAMPLE + SINGLE_TURNS,
    "llava_v0": HUMAN + SINGLE_TURNS,
    "v0_mmtag": MMTAG + SINGLE_TURNS,
    "v1": USER + TWO_TURNS,
    "vicuna_v1": USER + TWO_TURNS,
    "llava_v1": HUMAN + TWO_TURNS,
    "v1_mmtag": MMTAG + TWO_TURNS,
    "plain": "<image>\nWhat?\nA cat.\nWhy?\n",
    "v0_plain": "<image>\nWhat?\nA cat.\nWhy?\n",
    "mpt": MPT + MPT_TURNS,
    "chatml_direct": "<|im_start|>system\nAnswer the questions.<|im_end|>" + MPT_TURNS,
    "mistral_direct": "<|im_start|>system\nAnswer the questions.<|im_end|>" + MPT_TURNS,
    "mistral_instruct": "[INST] <image>\nWhat? [/INST] A cat. </s>[INST] Why? [/INST]",
    "llama_2": (
        f"[INST] <<SYS>>\n{LLAMA_2}\n<</SYS>>\n\n<image>\nWhat? [/INST] A cat. </s>"
        "<s>[INST] Why? [/INST]"
    ),
    "llava_llama_2": (
        f"[INST] <<SYS>>\n{LLAVA_LLAMA_2}\n<</SYS>>\n\n<image>\nWhat? [/INST] A cat. </s>"
        "<s>[INST] Why? [/INST]"
    ),
}


def ask(name: str, *messages: str | tuple | None) -> str:
    conversation = conv_templates[name].copy()
    for i, message in enumerate(messages):
        conversation.append_message(conversation.roles[i % 2], message)
    return conversation.get_prompt()


def test_every_template_has_a_snapshot() -> None:
    assert set(PROMPTS) == set(conv_templates)


@pytest.mark.parametrize("name", sorted(PROMPTS))
def test_prompt_of_two_questions(name: str) -> None:
    assert ask(name, "<image>\nWhat?", "A cat.", "Why?", None) == PROMPTS[name]


def test_single_turn_of_the_evaluation_scripts() -> None:
    assert ask("vicuna_v1", "<image>\nWhat is this?", None) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. "
        "USER: <image>\nWhat is this? ASSISTANT:"
    )


def test_finished_answer_ends_with_the_second_separator() -> None:
    assert ask("vicuna_v1", "Hi", "Hello.") == USER + " USER: Hi ASSISTANT: Hello.</s>"
    assert ask("plain", "<image>", "a cat") == "<image>\na cat\n"


def test_default_conversation_is_vicuna_v1() -> None:
    assert default_conversation.get_prompt() == USER + " "


def test_example_exchange_is_marked_as_offset() -> None:
    template = conv_templates["v0"]
    assert template.offset == len(template.messages) == 2
    assert all(c.offset == 0 for k, c in conv_templates.items() if k not in ("v0", "default"))


@pytest.mark.parametrize(
    ("name", "turns"),
    [
        ("vicuna_v1", " USER: <image>\nWhat? ASSISTANT:"),
        (
            "v1_mmtag",
            " USER: <Image><image></Image> ASSISTANT: Received.</s>USER: What? ASSISTANT:",
        ),
        ("v0_mmtag", "###Human: <Image><image></Image>###Assistant: Received.###Human: What?"),
    ],
)
def test_message_with_an_attached_image(name: str, turns: str) -> None:
    prompt = ask(name, ("What? <image> ", "the image", "Pad"), None)
    assert prompt.startswith(conv_templates[name].system + turns)


def test_later_attached_image_leaves_its_text_alone() -> None:
    prompt = ask("vicuna_v1", "Hi", "Hello.", ("<image>\nAnd?", "the image", "Pad"), None)
    assert prompt.endswith("Hello.</s>USER: <image>\nAnd? ASSISTANT:")


def test_copies_do_not_share_messages() -> None:
    first = conv_templates["v0"].copy()
    second = first.copy()
    second.append_message("Human", "Hi")
    second.messages[0][1] = "changed"
    assert len(first.messages) == 2
    assert first.get_prompt() == conv_templates["v0"].get_prompt()


def test_appending_to_a_template_is_refused() -> None:
    with pytest.raises(TypeError, match=r"copy\(\)"):
        conv_templates["vicuna_v1"].append_message("USER", "Hi")


@pytest.mark.parametrize("message", [("ASSISTANT", "Hi"), ("USER", None)])
def test_llama_2_must_open_with_the_user(message: tuple[str, str | None]) -> None:
    conversation = Conversation("", ("USER", "ASSISTANT"), [], sep_style=SeparatorStyle.LLAMA_2)
    conversation.append_message(*message)
    with pytest.raises(ValueError, match="first message"):
        conversation.get_prompt()
