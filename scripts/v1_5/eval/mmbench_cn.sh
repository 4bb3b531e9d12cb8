#!/usr/bin/env bash
# MMBench-CN (dev) with LLaVA-1.5-7B: answers, then scores.
#   bash scripts/v1_5/eval/mmbench_cn.sh TOKENS [flags of llava.eval.model_vqa_mmbench]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_benchmark.sh"
evaluate mmbench_cn liuhaotian/llava-v1.5-7b 576 "$@"
