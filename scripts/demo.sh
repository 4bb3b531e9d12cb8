#!/usr/bin/env bash
# The main job on what the repository brings along: sets up, answers the mini benchmarks with the
# embedded checkpoint, unpruned (576 tokens), with AutoPrune at 192, 128, 64 and 32 tokens, at 64 with
# tokens keeping their positions, and with no picture at all, and prints scores and cost. CPU is
# enough. The same command again continues.
#   bash scripts/demo.sh [flags of llava.eval.compare.sweep]      LIMIT: questions of each benchmark
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

LIMIT=${LIMIT:-40} # two minutes on two cores

prepare_environment

# A folder for each limit, because answers to different questions are never mixed.
exec .venv/bin/python -m llava.eval.compare.sweep \
    --model-path playground/demo/llava-demo \
    --data playground/data/mini \
    --out "playground/data/mini/answers/demo-$LIMIT" \
    --runs none autoprune:192,128,64,32 autoprune:64@positions=original no-image \
    --limit "$LIMIT" \
    --dtype float32 --batch-size 8 \
    "$@"
