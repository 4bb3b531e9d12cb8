#!/usr/bin/env bash
# VQAv2 (val2014, else test-dev) with LLaVA-1.5-7B: answers, then scores or writes the upload.
#   bash scripts/v1_5/eval/vqav2.sh TOKENS [flags of llava.eval.model_vqa_loader]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_benchmark.sh"
evaluate vqav2 liuhaotian/llava-v1.5-7b 576 "$@"
