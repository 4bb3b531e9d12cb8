"""See in the browser what a method keeps of a picture, and what it costs and answers.

    python -m llava.serve.viewer --model-path playground/demo/llava-demo

Pick or drop a picture, ask, move the budget, choose the method: the page shows the answers with
and without pruning, the patches that are left in each layer, tokens, FLOPs and times. It is
a small page of our own, served by Python's own server, and loads nothing from elsewhere.

It listens on this machine only unless --host says otherwise. There is no login: whoever reaches
another --host may use the model. Pictures stay in memory, for as long as their answer takes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava import flags, program
from llava.eval.arguments import Help

from .handler import ViewerServer
from .startup import add_checkpoint_arguments, load, quiet, scaled_pruner
from .viewing import Viewer


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.serve.viewer",
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
    """Run the command line until it is interrupted; 2 on wrong input."""
    args = build_parser().parse_args(argv)
    quiet()
    try:
        if args.max_new_tokens < 1:
            raise ValueError(f"--max-new-tokens must be at least 1, got {args.max_new_tokens}")
        if not 0 <= args.port <= 65535:
            raise ValueError(f"--port must be 0 to 65535, got {args.port}")
        loaded = load(args)
        pruner = scaled_pruner(args, loaded.layers)
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
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        server = ViewerServer(viewer, args.host, args.port)
    except OSError as error:
        where = f"--host {args.host} --port {args.port}"
        print(f"error: {where} cannot be listened on: {error}", file=sys.stderr)
        return 2
    if not server.local:
        print("Anybody who can reach this address can use it; there is no login.", file=sys.stderr)
    print(f"{server.url}  (Ctrl-C ends)", flush=True)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    program.run(main)
