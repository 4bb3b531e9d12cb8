#!/usr/bin/env bash
# GQA (testdev, balanced) with LLaVA-1.5-7B: answers, then scores.
#   bash scripts/v1_5/eval/gqa.sh TOKENS [flags of llava.eval.model_vqa_loader]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_benchmark.sh"
evaluate gqa liuhaotian/llava-v1.5-7b 576 "$@"
