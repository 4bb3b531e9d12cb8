#!/usr/bin/env bash
# VQAv2 (val2014, else test-dev) with LLaVA-1.6-13B: answers, then scores or writes the upload.
#   bash scripts/v1_6/eval/vqav2_13b.sh TOKENS [flags of llava.eval.model_vqa_loader]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_benchmark.sh"
evaluate vqav2 liuhaotian/llava-v1.6-vicuna-13b 2880 "$@"
