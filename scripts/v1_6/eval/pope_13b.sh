#!/usr/bin/env bash
# POPE with LLaVA-1.6-13B: answers, then scores.
#   bash scripts/v1_6/eval/pope_13b.sh TOKENS [flags of llava.eval.model_vqa_loader]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_benchmark.sh"
evaluate pope liuhaotian/llava-v1.6-vicuna-13b 2880 "$@"
