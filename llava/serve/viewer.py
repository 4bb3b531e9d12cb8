"""See in the browser what a method keeps of a picture, and what it costs and answers.

    python -m llava.serve.viewer --model-path playground/demo/llava-demo

Pick or drop a picture, ask, choose two methods, each with its budget and settings: the page shows
their answers side by side (at first without pruning and with), the patches that are left in each
layer, tokens, FLOPs and times, and plays through the layers. It takes LLaVA-1.5, LLaVA-1.6 with its
tiles, and models that transformers loads by itself (see `llava.hf`). It is a small page of our own,
served by Python's own server, and loads nothing from elsewhere.

It listens on this machine only unless --host says otherwise. There is no login: whoever reaches
another --host may use the model. Pictures stay in memory, for as long as their answer takes.

Ctrl-C, SIGTERM and SIGHUP end it: answers under way stop at their next token. Exit status: 0 ended
so, 1 nothing can be said on stdout, 2 wrong input, 130 ended before it served, or by a second
signal.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from threading import Thread

from llava.common import flags, program
from llava.eval.run.arguments import Help
from llava.eval.run.depths import pruner_in_decoder

from .handler import ViewerServer
from .startup import (
    add_checkpoint_arguments,
    drop_stdout,
    handling,
    install,
    leave_at_once,
    load,
    quiet,
)
from .viewing import Viewer


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=program.name("llava.serve.viewer"),
        description="Serve a page that shows what a pruning method keeps, costs and answers.",
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=flags.whole(), default=7860, help="0 takes any that is free")
    parser.add_argument(
        "--max-new-tokens", type=flags.whole(most=10**6), default=128, help="of one answer"
    )
    add_checkpoint_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line until a signal ends it; the exit status."""
    with handling(leave_at_once):
        args = build_parser().parse_args(argv)
        quiet()
        try:
            server = _server(args)
        except (ValueError, OSError, ImportError, NotImplementedError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        if not server.local:
            warning = "Anybody who can reach this address can use it; there is no login."
            print(warning, file=sys.stderr)
        return _serve(server)


def _server(args: argparse.Namespace) -> ViewerServer:
    """The server of a parsed command line, listening.

    Raises:
        ValueError, OSError, ImportError: wrong input; says which.
    """
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be at least 1, got {args.max_new_tokens}")
    if not 0 <= args.port <= 65535:
        raise ValueError(f"--port must be 0 to 65535, got {args.port}")
    loaded = load(args)
    pruner = pruner_in_decoder(args, loaded.layers)
    if any(getattr(pruner, name, None) is not None for name in ("target_flops", "target_kv")):
        raise ValueError(
            "the page's budget is a number of tokens: give --target-token-num or "
            "--target-fraction, and see there what FLOPs and cache it takes"
        )
    viewer = Viewer(
        loaded,
        pruner,
        name=args.model_path,
        conv_mode=args.conv_mode,
        max_new_tokens=args.max_new_tokens,
        depth_layers=args.depth_layers,
    )
    try:
        return ViewerServer(viewer, args.host, args.port)
    except (OSError, UnicodeError) as error:
        where = f"--host {args.host} --port {args.port}"
        raise OSError(f"{where} cannot be listened on: {error}") from None


def _serve(server: ViewerServer) -> int:
    """Serve until the first signal; the exit status."""

    def end(number: int, frame: object) -> None:
        install(leave_at_once)
        Thread(target=server.shutdown).start()  # it waits for the loop, which waits for this

    with handling(end), server:
        try:
            print(f"{server.url}  (Ctrl-C ends)", flush=True)
        except OSError as error:
            drop_stdout()
            print(f"error: stdout cannot be written to: {error}", file=sys.stderr)
            return 1
        server.serve_forever(poll_interval=0.1)
    return 0


if __name__ == "__main__":
    program.run(main)
