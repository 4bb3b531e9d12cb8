#!/usr/bin/env bash
# TextVQA (validation) with LLaVA-1.5: answers, then scores.
#   bash scripts/v1_5/eval/textvqa.sh TOKENS [flags of llava.eval.model_vqa_loader]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_common.sh"

setup textvqa "$@"
need_model "checkpoint liuhaotian/llava-v1.5-7b on the Hugging Face hub"
need "$DATA/llava_textvqa_val_v051_ocr.jsonl" "questions: textvqa/ in LLaVA's eval.zip"
need "$DATA/TextVQA_0.5.1_val.json" "annotations: textvqa.org"
need "$DATA/train_images" "images: train_val_images.zip from textvqa.org"
stop_if_missing

ANSWERS=${ANSWERS:-$DATA/answers/$CKPT/$METHOD/n_$TOKENS.jsonl}
answer model_vqa_loader \
    --model-path "$MODEL_PATH" \
    --question-file "$DATA/llava_textvqa_val_v051_ocr.jsonl" \
    --image-folder "$DATA/train_images" \
    --answers-file "$ANSWERS" \
    --conv-mode vicuna_v1 --temperature 0 \
    --visual-token-num 576 --target-token-num "$TOKENS" \
    --x0 14.9 --k0 0.4 --gamma 0.2 \
    ${FLAGS[@]+"${FLAGS[@]}"}

"$PYTHON" -m llava.eval.eval_textvqa \
    --annotation-file "$DATA/TextVQA_0.5.1_val.json" --result-file "$ANSWERS"
