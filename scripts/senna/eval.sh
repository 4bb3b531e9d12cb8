#!/usr/bin/env bash
# Senna's planning accuracy: answers, then scores.
#   bash scripts/senna/eval.sh TOKENS [flags of llava.eval.model_vqa_senna]
# TOKENS are those of a camera view, of 128, as the paper's Table 3 counts: 26, 32, 38, 45, 51. The
# six views of a question share six times as many; with --budget-per image each gets its own. Or they
# are a share of all, such as 0.25.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../eval_common.sh"

VIEWS=6

setup senna rb93dett/Senna "$@"
of_each_view=' --budget-per[= ]image '
if [[ $TOKENS != *.* && ! " ${FLAGS[*]-} " =~ $of_each_view ]]; then
    BUDGET=(--target-token-num $((VIEWS * TOKENS)))
fi
need_model "checkpoint rb93dett/Senna on the Hugging Face hub"
QUESTIONS=${QUESTIONS:-$DATA/eval_plan_qa.json}
need "$QUESTIONS" "questions: not published; python -m llava.eval.benchmarks.senna.build makes them of nuScenes' val frames"
IMAGES=${IMAGES:-$DATA}
need "$IMAGES" "images: nuScenes from nuscenes.org, where the questions' paths lead"
stop_if_missing

SUBFOLDER=$CKPT/$METHOD/n_$TOKENS
if [[ $CHUNKS != 1 ]]; then
    SUBFOLDER+=/${CHUNKS}_$CHUNK
fi
ANSWERS=${ANSWERS:-$DATA/answers/$SUBFOLDER.jsonl}
answer model_vqa_senna \
    --model-path "$MODEL_PATH" \
    --question-file "$QUESTIONS" \
    --image-folder "$IMAGES" \
    --answers-file "$ANSWERS" \
    "${BUDGET[@]}" \
    ${FLAGS[@]+"${FLAGS[@]}"}

if [[ $CHUNKS != 1 ]]; then
    tell_part
else
    "$PYTHON" -m llava.eval.eval_senna --annotation-file "$QUESTIONS" --result-file "$ANSWERS"
fi
