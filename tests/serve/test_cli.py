"""The chat's command line: the dialogue, what is said about it, and wrong input."""

from __future__ import annotations

import io
import os
import signal

import pytest

from llava import pruning
from llava.eval.run.depths import pruner_in_decoder
from llava.serve import cli, startup

from .paths import DEMO, PICTURE

FLAGS = ["--model-path", str(DEMO), "--image-file", str(PICTURE), "--temperature", "0"]


@pytest.fixture
def talk(demo, monkeypatch, capsys):
    """Run the program on lines of stdin; its status, stdout and stderr."""

    def run(lines: str, *flags: str) -> tuple[int, str, str]:
        monkeypatch.setattr(cli, "load", lambda args: demo)
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        code = cli.main([*FLAGS, *flags])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def test_a_dialogue(talk) -> None:
    code, out, err = talk(
        "What word is on the blue sign?\nWhat color is the sign?\n/reset\n"
        "What word is on the blue sign?\n\n",
        *("--target-token-num", "64", "--max-new-tokens", "16"),
    )
    assert code == 0
    # The prompts, which no line break follows on a pipe, and the answers.
    first, second, third, end = out.split("\n")
    assert first.startswith("USER: ASSISTANT: ") and len(first) > len("USER: ASSISTANT: ")
    assert second.startswith("USER: ASSISTANT: ")
    assert third == "USER: " + first and end == "USER: "
    assert err.count("[pruned] of 576 visual tokens") == 2
    assert "stays dropped in the turns to come; /reset looks at the picture again" in err
    assert "x0 14.9 is for 32 layers; this decoder has 12: 5.5875" in err
    assert "[time]" not in err


def test_debug_gives_tokens_and_times(talk) -> None:
    question = "What word is on the blue sign?"
    code, _, err = talk(
        f"{question}\nIs it red?\n",
        "--method",
        "uniform-grid",
        "--target-token-num",
        "64",
        "--debug",
    )
    assert code == 0
    lines = [line for line in err.splitlines() if line.startswith("[")]
    kinds = [line.split("]")[0][1:] for line in lines]
    assert kinds == [
        "pruned",
        *("tokens", "layers", "cache", "flops", "time"),
        *("tokens", "cache", "flops", "time"),
    ]
    assert "[layers] visual tokens entering: " + " ".join(["64"] * 12) in err
    assert "no picture encoded again, nothing pruned" in lines[6]
    # Between 64 / 576 of the tokens and all of them, as text is there as well.
    share = float(lines[4].split("put in, ")[1].split("%")[0])
    assert 11 < share < 30
    # Nothing is scored, so no more runs than is counted.
    assert f"{share:.1f}% of unpruned (published counting); " in lines[4]
    computed = float(lines[4].split("; ")[1].removesuffix("% computed"))
    assert 10 < computed <= share
    assert lines[8].endswith("% of unpruned (published counting)")
    assert "first token" in lines[5] and "tokens in all" in lines[5]


def test_nothing_is_said_of_pruning_where_there_is_none(talk) -> None:
    code, _, err = talk("Is it red?\n", "--method", "none", "--max-new-tokens", "1")
    assert code == 0 and "[pruned]" not in err
    assert "[cut] the answer reached --max-new-tokens." in err


def test_a_budget_out_of_reach_ends_it(talk) -> None:
    code, _, err = talk("Is it red?\n", "--target-token-num", "1", "--budget-mode", "strict")
    assert code == 2 and "error: " in err and "below the floor" in err


ASKED = "What word is on the blue sign?\n"


def test_ctrl_c_cuts_an_answer_and_not_the_chat(talk, monkeypatch) -> None:
    written, before = [], signal.getsignal(signal.SIGINT)

    def interrupt(piece: str) -> None:
        written.append(piece)
        if len(written) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(cli, "_write", interrupt)
    code, _, err = talk(f"{ASKED}Is it red?\n", "--target-token-num", "64")
    assert code == 0 and err.count("[cut] stopped.") == 1
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_cut_the_answer_and_end_the_chat(talk, monkeypatch, number) -> None:
    written, handlers = [], []

    def interrupt(piece: str) -> None:
        written.append(piece)
        if len(written) == 1:
            os.kill(os.getpid(), number)
            handlers.append(signal.getsignal(signal.SIGINT))

    monkeypatch.setattr(cli, "_write", interrupt)
    with startup.handling(signal.default_int_handler):  # in case the chat does not handle it
        code, _, err = talk(f"{ASKED}Is it red?\n")
    assert code == 130 and err.count("[cut] stopped.") == 1 and "exit..." not in err
    assert handlers == [startup.leave_at_once]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 130), (signal.SIGHUP, 130)]
)
def test_a_signal_in_place_of_a_question_ends_the_chat(talk, monkeypatch, number, status) -> None:
    def signalled(prompt: str) -> str:
        os.kill(os.getpid(), number)
        return ASKED

    monkeypatch.setattr("builtins.input", signalled)
    with startup.handling(signal.default_int_handler):  # in case the chat does not handle it
        code, _, err = talk("")
    assert code == status and ("exit..." in err) == (status == 0)


def test_ctrl_c_between_question_and_answer_ends_the_chat(talk, monkeypatch) -> None:
    monkeypatch.setattr(cli, "notes", lambda turn: os.kill(os.getpid(), signal.SIGINT))
    code, _, err = talk(ASKED, "--max-new-tokens", "1")
    assert code == 130 and "Traceback" not in err


def full() -> io.TextIOBase:
    return open("/dev/full", "w")


def broken() -> io.TextIOBase:
    read, write = os.pipe()
    os.close(read)
    return open(write, "w")


@pytest.mark.parametrize(
    ("stdout", "message"), [(full, "No space left on device"), (broken, "Broken pipe")]
)
def test_a_stdout_that_is_full_or_broken_ends_the_chat(talk, monkeypatch, stdout, message) -> None:
    with stdout() as stream:
        monkeypatch.setattr("sys.stdout", stream)
        code, _, err = talk(ASKED, "--max-new-tokens", "1")
        stream.flush()  # as Python does at its end, without a word
    assert code == 1
    assert err.splitlines()[-1].startswith("error: stdin cannot be read, or stdout not be written")
    assert message in err


@pytest.mark.parametrize("name", ["sys.stdin", "sys.stdout"])
def test_a_stream_that_is_closed_ends_the_chat(demo, monkeypatch, capsys, name) -> None:
    monkeypatch.setattr(cli, "load", lambda args: demo)
    monkeypatch.setattr(name, None)
    assert cli.main(FLAGS) == 1
    assert "it is closed" in capsys.readouterr().err


def test_what_is_no_text_is_not_asked(demo, monkeypatch, capsys) -> None:
    monkeypatch.setattr(cli, "load", lambda args: demo)
    lines = io.TextIOWrapper(io.BytesIO(b"caf\xe9?\nIs it red?\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", lines)
    assert cli.main([*FLAGS, "--max-new-tokens", "2"]) == 0
    out = capsys.readouterr()
    assert out.err.count("error: the text has half of a surrogate pair, U+DCE9") == 1
    assert out.err.count("[pruned]") == 1 and out.out.endswith("ASSISTANT: yes\nUSER: ")


def test_an_answer_is_written_to_a_stdout_of_any_encoding(demo, monkeypatch) -> None:
    monkeypatch.setattr(cli, "load", lambda args: demo)
    monkeypatch.setattr("llava.serve.chat.visible", lambda text, end: "caf\u00e9")
    monkeypatch.setattr("llava.serve.streaming.visible", lambda text, end: "caf\u00e9")
    monkeypatch.setattr("sys.stdin", io.StringIO("Is it red?\n"))
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert cli.main([*FLAGS, "--max-new-tokens", "2"]) == 0
    assert rb"ASSISTANT: caf\xe9" in written.getvalue()


def test_an_error_without_words_is_named(talk, monkeypatch) -> None:
    def fail(self, *_):
        raise MemoryError

    monkeypatch.setattr(cli.Chat, "say", fail)
    code, _, err = talk(ASKED)
    assert code == 2 and err.splitlines()[-1] == "error: MemoryError"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image-file", "nowhere.png"], "no image file at nowhere.png"),
        (["--image-file", "https://example.org/a.png"], "give --allow-urls"),
        (["--load-4bit", "--load-8bit"], "exclude each other"),
        (["--device", "cuda:99"], "--device cuda:99 cannot be used here"),
        (["--set", "no_such=1"], "unknown setting of method autoprune 'no_such'"),
        (["--depth-layers", "0"], "--depth-layers must be at least 1"),
        (["--temperature", "-1"], "temperature must not be negative"),
        (["--model-path", "nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_named(flags, message, demo, monkeypatch, capsys) -> None:
    if not {"--load-4bit", "--device", "--model-path"} & set(flags):
        monkeypatch.setattr(cli, "load", lambda args: demo)
    assert cli.main([*FLAGS, *flags]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ") and message in error


def test_pruning_flags_arrive() -> None:
    flags = [*FLAGS, "--method", "fastv", "--target-token-num", "64", "--set", "depth=8"]
    args = cli.build_parser().parse_args(flags)
    assert pruner_in_decoder(args, 12) == pruning.build("fastv", target_token_num=64.0, depth=8)
    args = cli.build_parser().parse_args([*flags, "--depth-layers", "32"])
    assert pruner_in_decoder(args, 12).depth == 3  # 8 * 12 / 32


def test_a_prompt_beyond_the_context_does_not_end_the_chat(talk) -> None:
    code, out, err = talk(f"{'word ' * 2000}\nIs it red?\n\n", "--max-new-tokens", "2")
    assert code == 0 and len(out.split("\n")) == 3
    assert "error: a prompt has" in err and "the context of this model is 2048" in err


def test_defaults_of_the_checkpoint_are_those_of_all_programs_and_the_rest_are_llavas() -> None:
    args = cli.build_parser().parse_args(FLAGS[:4])
    assert (args.dtype, args.attn_implementation, args.device) == ("auto", "sdpa", None)
    assert (args.temperature, args.max_new_tokens, args.conv_mode) == (0.2, 512, "vicuna_v1")


def test_a_checkpoint_is_loaded_with_its_context() -> None:
    loaded = startup.load(cli.build_parser().parse_args([*FLAGS, "--device", "cpu"]))
    # config.json names no length of its own, so the decoder's positions are the context.
    assert loaded.context_len == 2048 and loaded.layers == 12
