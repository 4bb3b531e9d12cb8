#!/usr/bin/env bash
# GQA (testdev, balanced) with LLaVA-1.6-7B: answers, then scores.
#   bash scripts/v1_6/eval/gqa.sh TOKENS [flags of llava.eval.model_vqa_loader]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_benchmark.sh"
evaluate gqa liuhaotian/llava-v1.6-vicuna-7b 2880 "$@"
