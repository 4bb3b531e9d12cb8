#!/usr/bin/env bash
# POPE with LLaVA-1.5-7B: answers, then scores.
#   bash scripts/v1_5/eval/pope.sh TOKENS [flags of llava.eval.model_vqa_loader]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_benchmark.sh"
evaluate pope liuhaotian/llava-v1.5-7b 576 "$@"
