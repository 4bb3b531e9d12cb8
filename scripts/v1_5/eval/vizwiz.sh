#!/usr/bin/env bash
# VizWiz (val, else test) with LLaVA-1.5-7B: answers, then scores or writes the upload.
#   bash scripts/v1_5/eval/vizwiz.sh TOKENS [flags of llava.eval.model_vqa_loader]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_benchmark.sh"
evaluate vizwiz liuhaotian/llava-v1.5-7b 576 "$@"
