"""LLaVA-1.6 in chat and viewer: the flags of its checkpoints arrive."""

from __future__ import annotations

import argparse

from llava.serve.startup import add_checkpoint_arguments, load

from .. import checkpoints_next


def test_the_merge_type_arrives_and_the_context_is_the_checkpoints(tmp_path):
    folder = checkpoints_next.write_original(tmp_path)
    parser = argparse.ArgumentParser()
    add_checkpoint_arguments(parser)
    for flags, merged in (([], "spatial_unpad"), (["--merge-type", "spatial"], "spatial")):
        args = parser.parse_args(["--model-path", str(folder), "--device", "cpu", *flags])
        loaded = load(args)
        assert loaded.model.config.mm_patch_merge_type == merged
        assert loaded.model.config.anyres_reading == "llava"
        assert loaded.context_len == 4096
