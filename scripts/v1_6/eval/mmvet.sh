#!/usr/bin/env bash
# MM-Vet with LLaVA-1.6-7B: answers, then writes its grader's file.
#   bash scripts/v1_6/eval/mmvet.sh TOKENS [flags of llava.eval.model_vqa]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_benchmark.sh"
evaluate mmvet liuhaotian/llava-v1.6-vicuna-7b 2880 "$@"
