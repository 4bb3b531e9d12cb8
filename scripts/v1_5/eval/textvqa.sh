#!/usr/bin/env bash
# TextVQA (validation) with LLaVA-1.5-7B: answers, then scores.
#   bash scripts/v1_5/eval/textvqa.sh TOKENS [flags of llava.eval.model_vqa_loader]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_benchmark.sh"
evaluate textvqa liuhaotian/llava-v1.5-7b 576 "$@"
