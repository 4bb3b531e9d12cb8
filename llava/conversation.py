"""Conversation templates: how a list of turns becomes LLaVA's prompt string.

A checkpoint answers well only in the template it was trained with: LLaVA-1.5 with `vicuna_v1`
("curious user"), which the evaluation scripts pass; `llava_v1` ("curious human") differs by two
words and moves scores.

Source: haotian-liu/LLaVA 1.2.2 (template strings are its data). Deviations: templates hold an
immutable tuple of messages, so appending to one that was not copied raises instead of leaking a
turn into every later prompt; a style with one separator uses it for both roles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
)


class SeparatorStyle(Enum):
    """How roles, messages and separators are laid out (see `Conversation.get_prompt`)."""

    SINGLE = auto()
    TWO = auto()
    MPT = auto()
    PLAIN = auto()
    LLAMA_2 = auto()


@dataclass
class Conversation:
    """A system text, two roles and the turns so far.

    Attributes:
        system: text in front of the first turn.
        roles: name of the user and of the assistant, as written into the prompt.
        messages: (role, message) pairs in order. A message is a string, None for the turn that
            the model is to write, or a tuple whose first item is the text (web interfaces keep
            the image beside it).
        offset: number of built-in example messages at the front.
        sep_style: layout.
        sep: separator after every turn, or after the user's turns only where `sep2` is set.
        sep2: separator after the assistant's turns.
        version: family of the template; `mmtag` in it marks images as `<Image>...</Image>` turns.
    """

    system: str
    roles: tuple[str, str]
    messages: Sequence[Sequence[Any]]
    offset: int = 0
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    sep: str = "###"
    sep2: str | None = None
    version: str = "Unknown"

    def append_message(self, role: str, message: str | tuple | None) -> None:
        """Add one turn; None as the message leaves it for the model to write.

        Raises:
            TypeError: on a template that was not copied first.
        """
        if not isinstance(self.messages, list):
            raise TypeError(
                "this Conversation is a shared template with fixed messages: "
                "take conv_templates[name].copy() and append to the copy"
            )
        self.messages.append([role, message])

    def copy(self) -> Conversation:
        """A conversation with its own list of messages, safe to append to."""
        return replace(self, messages=[list(pair) for pair in self.messages])

    def get_prompt(self) -> str:
        """The prompt string of all turns, special tokens written out (`</s>`), without BOS.

        Raises:
            ValueError: in the LLAMA_2 style, when the first turn is not a user's with text.
        """
        turns = self._turns()
        if self.sep_style is SeparatorStyle.LLAMA_2:
            return self._llama_2_prompt(turns)
        seps = (self.sep, self.sep if self.sep2 is None else self.sep2)
        if self.sep_style is SeparatorStyle.PLAIN:
            return self.system + "".join(
                message + seps[i % 2] for i, (_, message) in enumerate(turns) if message
            )
        # MPT's role strings carry their own newline, the others are set off by a colon.
        colon = "" if self.sep_style is SeparatorStyle.MPT else ":"
        space = " " if colon else ""
        prompt = self.system + self.sep
        for i, (role, message) in enumerate(turns):
            prompt += role + colon + (space + message + seps[i % 2] if message else "")
        return prompt

    def _turns(self) -> list[tuple[str, str | None]]:
        """(role, text) pairs; an image attached to the first message becomes text in front."""
        turns = [(role, m[0] if isinstance(m, tuple) else m) for role, m in self.messages]
        if turns and isinstance(self.messages[0][1], tuple):
            role, text = turns[0]
            text = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
            if "mmtag" in self.version:
                tagged = (self.roles[0], f"<Image>{DEFAULT_IMAGE_TOKEN}</Image>")
                turns[:1] = [tagged, (self.roles[1], "Received."), (role, text)]
            else:
                turns[0] = (role, f"{DEFAULT_IMAGE_TOKEN}\n{text}")
        return turns

    def _llama_2_prompt(self, turns: list[tuple[str, str | None]]) -> str:
        if turns and (not turns[0][1] or turns[0][0] != self.roles[0]):
            raise ValueError(
                f"the first message of a LLAMA_2 conversation must be text of {self.roles[0]!r}, "
                f"got {turns[0][1]!r} of {turns[0][0]!r}"
            )
        system = f"<<SYS>>\n{self.system}\n<</SYS>>\n\n" if self.system else ""
        prompt = ""
        for i, (_, message) in enumerate(turns):
            if not message:
                continue
            if i % 2 == 0:
                prompt += f"{self.sep}[INST] {system if i == 0 else ''}{message} [/INST]"
            else:
                prompt += f" {message} {self.sep2}"
        # The tokenizer adds the first <s>.
        return prompt.removeprefix(self.sep)


_CURIOUS_HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_CURIOUS_USER = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# The missing space after the second sentence is part of the trained prompt.
_MMTAG = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant is able to understand the visual content that the user provides, and assist "
    "the user with a variety of tasks using natural language."
    "The visual content will be provided with the following format: "
    "<Image>visual content</Image>."
)
_LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
    "while being safe.  Your answers should not include any harmful, unethical, racist, sexist, "
    "toxic, dangerous, or illegal content. Please ensure that your responses are socially "
    "unbiased and positive in nature.\n"
    "\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of "
    "answering something not correct. If you don't know the answer to a question, please don't "
    "share false information."
)
_LLAVA_LLAMA_2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
_V0_QUESTION = "What are the key differences between renewable and non-renewable energy sources?"
_V0_ANSWER = (
    "Renewable energy sources are those that can be replenished naturally in a relatively short "
    "amount of time, such as solar, wind, hydro, geothermal, and biomass. Non-renewable energy "
    "sources, on the other hand, are finite and will eventually be depleted, such as coal, oil, "
    "and natural gas. Here are some key differences between renewable and non-renewable energy "
    "sources:\n"
    "1. Availability: Renewable energy sources are virtually inexhaustible, while non-renewable "
    "energy sources are finite and will eventually run out.\n"
    "2. Environmental impact: Renewable energy sources have a much lower environmental impact "
    "than non-renewable sources, which can lead to air and water pollution, greenhouse gas "
    "emissions, and other negative effects.\n"
    "3. Cost: Renewable energy sources can be more expensive to initially set up, but they "
    "typically have lower operational costs than non-renewable sources.\n"
    "4. Reliability: Renewable energy sources are often more reliable and can be used in more "
    "remote locations than non-renewable sources.\n"
    "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to "
    "different situations and needs, while non-renewable sources are more rigid and inflexible.\n"
    "6. Sustainability: Renewable energy sources are more sustainable over the long term, while "
    "non-renewable sources are not, and their depletion can lead to economic and social "
    "instability.\n"
)


def _single(system: str, **fields: Any) -> Conversation:
    fields = {"messages": (), **fields}
    return Conversation(system=system, roles=("Human", "Assistant"), **fields)


def _two(system: str, version: str = "v1") -> Conversation:
    return Conversation(
        system=system,
        roles=("USER", "ASSISTANT"),
        messages=(),
        sep_style=SeparatorStyle.TWO,
        sep=" ",
        sep2="</s>",
        version=version,
    )


def _mpt(system: str) -> Conversation:
    return Conversation(
        system="<|im_start|>system\n" + system,
        roles=("<|im_start|>user\n", "<|im_start|>assistant\n"),
        messages=(),
        sep_style=SeparatorStyle.MPT,
        sep="<|im_end|>",
        version="mpt",
    )


def _llama_2(system: str, sep: str = "<s>") -> Conversation:
    return Conversation(
        system=system,
        roles=("USER", "ASSISTANT"),
        messages=(),
        sep_style=SeparatorStyle.LLAMA_2,
        sep=sep,
        sep2="</s>",
        version="llama_v2",
    )


_VICUNA_V0 = _single(
    _CURIOUS_HUMAN,
    messages=(("Human", _V0_QUESTION), ("Assistant", _V0_ANSWER)),
    offset=2,
)
_VICUNA_V1 = _two(_CURIOUS_USER)
_PLAIN = Conversation(
    system="", roles=("", ""), messages=(), sep_style=SeparatorStyle.PLAIN, sep="\n"
)
_CHATML_DIRECT = _mpt("Answer the questions.")

conv_templates: dict[str, Conversation] = {
    "default": _VICUNA_V0,
    "v0": _VICUNA_V0,
    "v1": _VICUNA_V1,
    "vicuna_v1": _VICUNA_V1,
    "llama_2": _llama_2(_LLAMA_2),
    "mistral_instruct": _llama_2("", sep=""),
    "chatml_direct": _CHATML_DIRECT,
    "mistral_direct": _CHATML_DIRECT,
    "plain": _PLAIN,
    "v0_plain": _PLAIN,
    "llava_v0": _single(_CURIOUS_HUMAN),
    "v0_mmtag": _single(_MMTAG, version="v0_mmtag"),
    "llava_v1": _two(_CURIOUS_HUMAN),
    "v1_mmtag": _two(_MMTAG, version="v1_mmtag"),
    "llava_llama_2": _llama_2(_LLAVA_LLAMA_2),
    "mpt": _mpt(
        "A conversation between a user and an LLM-based AI assistant. "
        "The assistant gives helpful and honest answers."
    ),
}

default_conversation = _VICUNA_V1


def without_image_tokens(text: str) -> str:
    """`text` without literal image tokens, each of which would become an image slot."""
    while DEFAULT_IMAGE_TOKEN in text:  # removing one may join the pieces of another
        text = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
    return text


def image_message(text: str, images: int, model_cfg: Any) -> str:
    """What a user says about `images` pictures: each on a line of its own, then the text.

    `model_cfg` tells whether the model wants pictures between start and end tokens.
    """
    slot = DEFAULT_IMAGE_TOKEN
    if getattr(model_cfg, "mm_use_im_start_end", False):
        slot = DEFAULT_IM_START_TOKEN + slot + DEFAULT_IM_END_TOKEN
    return f"{slot}\n" * images + text


def new_conversation(conv_mode: str) -> Conversation:
    """An empty conversation of that template.

    Raises:
        ValueError: no such conversation template.
    """
    if conv_mode not in conv_templates:
        raise ValueError(f"unknown conv_mode {conv_mode!r}; known: {', '.join(conv_templates)}")
    return conv_templates[conv_mode].copy()


def image_prompt(text: str, images: int, conv_mode: str, model_cfg: Any) -> str:
    """The prompt of one question about `images` pictures, open for the answer.

    The pictures come first, each on a line of its own, as LLaVA was trained.

    Raises:
        ValueError: no such conversation template.
    """
    conversation = new_conversation(conv_mode)
    conversation.append_message(conversation.roles[0], image_message(text, images, model_cfg))
    conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt()
