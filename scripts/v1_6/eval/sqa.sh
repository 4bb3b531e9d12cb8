#!/usr/bin/env bash
# ScienceQA (test) with LLaVA-1.6-7B: answers, then scores.
#   bash scripts/v1_6/eval/sqa.sh TOKENS [flags of llava.eval.model_vqa_science]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_benchmark.sh"
evaluate sqa liuhaotian/llava-v1.6-vicuna-7b 2880 "$@"
