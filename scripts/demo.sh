#!/usr/bin/env bash
# The main job on what the repository brings along: sets up, asks the embedded checkpoint the mini
# benchmarks, unpruned (576 tokens), with AutoPrune at 192, 64 and 32 tokens a layer, with its preset
# `balanced` and a uniform grid at 64, and with no picture at all; prints a short table and bars, and
# writes demo.png and report.html. A CPU is enough. The same command again continues.
#   bash scripts/demo.sh [flags of llava.eval.compare.sweep]      LIMIT: questions of each benchmark
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

LIMIT=${LIMIT:-12} # one batch; 14 and 16 would leave MME without a score

prepare_environment

export HF_HUB_DISABLE_PROGRESS_BARS=1 # of loading, which is quick

# A folder for each limit, because answers to different questions are never mixed. Pictures are read
# by the process that answers: it needs both cores.
exec .venv/bin/python -m llava.analysis.demo \
    --model-path playground/demo/llava-demo \
    --data playground/data/mini \
    --out "playground/data/mini/answers/demo-$LIMIT" \
    --runs none autoprune:192,64,32 autoprune:64@preset=balanced uniform-grid:64 no-image \
    --limit "$LIMIT" \
    --ask playground/data/mini/textvqa/train_images/scene000000.jpg "What word is on the yellow sign?" \
    --dtype float32 --batch-size 12 --num-workers 0 \
    "$@"
