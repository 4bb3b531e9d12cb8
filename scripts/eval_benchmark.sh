# The ten benchmarks of <version>/eval/<benchmark>.sh, which source this file and call `evaluate`.

source "$(dirname "${BASH_SOURCE[0]}")/eval_common.sh"

# evaluate BENCHMARK CHECKPOINT VISUAL TOKENS [flags]: answers, then scores or writes the file for
# whoever scores it. CHECKPOINT is its name on the hub; VISUAL, the tokens its vision tower makes.
evaluate() {
    local benchmark=$1 checkpoint=$2 visual=$3 folder=$1
    shift 3
    case $benchmark in
        sqa) folder=scienceqa ;;
        mme) folder=MME ;;
        mmvet) folder=mm-vet ;;
    esac
    setup "$folder" "$checkpoint" "$@"
    need_model "checkpoint $checkpoint on the Hugging Face hub"
    "benchmark_$benchmark"
    stop_if_missing

    local subfolder=$CKPT/$METHOD/n_$TOKENS
    if [[ $CHUNKS != 1 ]]; then
        subfolder+=/${CHUNKS}_$CHUNK
    fi
    ANSWERS=${ANSWERS:-$DATA/answers/${SPLIT:+$SPLIT/}$subfolder.jsonl}
    answer "$PROGRAM" \
        --model-path "$MODEL_PATH" \
        --question-file "$QUESTIONS" \
        --image-folder "$IMAGES" \
        --answers-file "$ANSWERS" \
        --conv-mode vicuna_v1 \
        --visual-token-num "$visual" "${BUDGET[@]}" \
        ${PROMPT[@]+"${PROMPT[@]}"} \
        ${FLAGS[@]+"${FLAGS[@]}"}

    if [[ $CHUNKS != 1 ]]; then
        tell_part
    elif [[ -n $SCORED_AS ]]; then
        "$PYTHON" -m llava.eval.score --benchmark "$SCORED_AS" --data "$DATA" "$ANSWERS"
    else
        "submit_$benchmark" "${ANSWERS%.jsonl}.upload.json"
    fi
}

# convert PROGRAM [flags]: run a program of this checkout, be the package installed or not.
convert() {
    PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} "$PYTHON" "$@"
}

# Each benchmark_NAME says what `answer` gets and what has to be there, and sets SCORED_AS, the name
# under which it is scored here. Where that stays empty there is a submit_NAME FILE.
PROGRAM=model_vqa_loader PROMPT=() SCORED_AS="" SPLIT=""

# questions FILE SOURCE, images FOLDER SOURCE, annotations FILE SOURCE: what DATA has to hold,
# unless the user named another file or folder.
questions() {
    QUESTIONS=${QUESTIONS:-$DATA/$1}
    need "$QUESTIONS" "questions: $2"
}
images() {
    IMAGES=${IMAGES:-$DATA/$1}
    need "$IMAGES" "images: $2"
}
annotations() {
    need "$DATA/$1" "annotations: $2"
}

# on_val ANNOTATIONS: whether the val split is meant, which is scored here: the user named its
# questions, or no questions and its annotations are there.
on_val() {
    if [[ -n $QUESTIONS ]]; then
        [[ ${QUESTIONS##*/} =~ (^|_)val ]]
    else
        [[ -e $DATA/$1 ]]
    fi
}

# split_of_questions: answers to each split have a folder, named after its question file.
split_of_questions() {
    SPLIT=${QUESTIONS##*/}
    SPLIT=${SPLIT%.jsonl}
}

benchmark_vqav2() {
    local annotated=v2_mscoco_val2014_annotations.json
    if on_val $annotated; then
        SCORED_AS=vqav2
        questions llava_vqav2_mscoco_val2014.jsonl "v2_OpenEnded_mscoco_val2014_questions.json from visualqa.org, and
      python scripts/write_val_questions.py --benchmark vqav2 --dir $DATA"
        annotations $annotated "visualqa.org"
        images val2014 "val2014.zip from cocodataset.org"
    else
        questions llava_vqav2_mscoco_test-dev2015.jsonl "vqav2/ in LLaVA's eval.zip. To be scored here, not by the server,
      val2014 needs $annotated from visualqa.org in this folder"
        need "$DATA/llava_vqav2_mscoco_test2015.jsonl" "all questions of the server: the same place"
        images test2015 "test2015.zip from cocodataset.org"
    fi
    split_of_questions
}

submit_vqav2() {
    convert scripts/convert_vqav2_for_submission.py --src "$ANSWERS" --dst "$1" \
        --question-file "$QUESTIONS" --test-file "$DATA/llava_vqav2_mscoco_test2015.jsonl"
    echo "test-dev is scored by the VQA server on eval.ai (challenge 830); it takes $1" >&2
}

benchmark_gqa() {
    SCORED_AS=gqa
    questions llava_gqa_testdev_balanced.jsonl "gqa/ in LLaVA's eval.zip"
    annotations data/testdev_balanced_questions.json "questions of GQA 1.2 from gqadataset.org"
    images data/images "images of GQA from gqadataset.org"
}

benchmark_vizwiz() {
    if on_val val.json; then
        SCORED_AS=vizwiz
        questions llava_val.jsonl "made from val.json:
      python scripts/write_val_questions.py --benchmark vizwiz --dir $DATA"
        annotations val.json "Annotations.zip of VizWiz-VQA from vizwiz.org"
        images val "val.zip of VizWiz-VQA from vizwiz.org"
    else
        questions llava_test.jsonl "vizwiz/ in LLaVA's eval.zip. To be scored here, not by the
      server, the val split needs val.json of VizWiz-VQA from vizwiz.org in this folder"
        images test "test.zip of VizWiz-VQA from vizwiz.org"
    fi
    split_of_questions
}

submit_vizwiz() {
    convert scripts/convert_vizwiz_for_submission.py --annotation-file "$QUESTIONS" \
        --result-file "$ANSWERS" --result-upload-file "$1"
    echo "The test split is scored by the VizWiz server on eval.ai (challenge 1911); it takes" \
        "$1" >&2
}

benchmark_sqa() {
    PROGRAM=model_vqa_science PROMPT=(--single-pred-prompt) SCORED_AS=scienceqa
    questions llava_test_CQM-A.json "scienceqa/ in LLaVA's eval.zip"
    annotations problems.json "data/scienceqa of lupantech/ScienceQA on GitHub"
    annotations pid_splits.json "the same"
    images images/test "test.zip of ScienceQA, unpacked in images/"
}

benchmark_textvqa() {
    SCORED_AS=textvqa
    questions llava_textvqa_val_v051_ocr.jsonl "textvqa/ in LLaVA's eval.zip"
    # The file without OCR tokens makes another benchmark of it, whose scores do not compare.
    if [[ ${QUESTIONS##*/} == llava_textvqa_val_v051.jsonl ]]; then
        SCORED_AS=textvqa-noocr
        split_of_questions
    fi
    annotations TextVQA_0.5.1_val.json "textvqa.org"
    images train_images "train_val_images.zip from textvqa.org"
}

benchmark_pope() {
    SCORED_AS=pope
    local category
    questions llava_pope_test.jsonl "pope/ in LLaVA's eval.zip"
    for category in random popular adversarial; do
        annotations coco/coco_pope_$category.json \
            "output/coco of AoiDragon/POPE on GitHub, at commit e3e3926"
    done
    images val2014 "val2014.zip from cocodataset.org"
}

benchmark_mme() {
    SCORED_AS=mme
    questions llava_mme.jsonl "MME/ in LLaVA's eval.zip"
    images MME_Benchmark_release_version "with the annotations from the authors of MME
      (BradyFU/Awesome-Multimodal-Large-Language-Models on GitHub)"
}

benchmark_mmbench() {
    PROGRAM=model_vqa_mmbench PROMPT=(--single-pred-prompt) SCORED_AS=mmbench
    questions mmbench_dev_20230712.tsv "with images and annotations from open-compass/MMBench on GitHub"
    IMAGES=${IMAGES:-$DATA} # they are in the table
}

benchmark_mmbench_cn() {
    PROGRAM=model_vqa_mmbench PROMPT=(--single-pred-prompt --lang cn) SCORED_AS=mmbench_cn
    questions mmbench_dev_cn_20231003.tsv "with images and annotations from open-compass/MMBench on GitHub"
    IMAGES=${IMAGES:-$DATA}
}

benchmark_mmvet() {
    PROGRAM=model_vqa
    questions llava-mm-vet.jsonl "mm-vet/ in LLaVA's eval.zip"
    images images "mm-vet.zip in the releases of yuweihao/MM-Vet on GitHub"
}

submit_mmvet() {
    convert scripts/convert_mmvet_for_eval.py --src "$ANSWERS" --dst "$1" \
        --question-file "$QUESTIONS"
}
