#!/usr/bin/env bash
# The main job on what the repository brings along: sets up, answers the mini TextVQA benchmark with
# the embedded checkpoint, unpruned and pruned, scores, and shows what it cost. CPU is enough.
#   bash scripts/demo.sh [TOKENS [flags of llava.eval.model_vqa_loader]]     default: 64 tokens
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

tokens=${1:-64}
(($# == 0)) || shift
prepare_environment

export MODEL_PATH=playground/demo/llava-demo DATA=playground/data/mini/textvqa
unset PYTHON
answers=$DATA/answers/$(basename "$MODEL_PATH")
# The released x0 of 14.9 is meant for 32 layers; the embedded decoder has 12: 14.9 * 12 / 32.
bash scripts/v1_5/eval/textvqa.sh "$tokens" --method none --answers-file "$answers/none/n_576.jsonl" \
    --dtype float32 --batch-size 8 >/dev/null
bash scripts/v1_5/eval/textvqa.sh "$tokens" --x0 5.6 --dtype float32 --batch-size 8 \
    --answers-file "$answers/autoprune/n_$tokens.jsonl" "$@" >/dev/null
.venv/bin/python -m llava.eval.report --annotation-file "$DATA/TextVQA_0.5.1_val.json" \
    "$answers/none/n_576.jsonl" "$answers/autoprune/n_$tokens.jsonl"
