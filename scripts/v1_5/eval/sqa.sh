#!/usr/bin/env bash
# ScienceQA (test) with LLaVA-1.5-7B: answers, then scores.
#   bash scripts/v1_5/eval/sqa.sh TOKENS [flags of llava.eval.model_vqa_science]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_benchmark.sh"
evaluate sqa liuhaotian/llava-v1.5-7b 576 "$@"
