# What eval_benchmark.sh needs to read a command line, to find data and to answer. It changes to the
# checkout, so paths that the user gave relative to where they stand are made absolute first.

CALLER=$PWD
unset CDPATH # it would send a relative cd elsewhere
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The path as seen from the caller's folder if there is such a thing, else as it is (a hub name).
from_caller() {
    if [[ $1 != /* && -e $CALLER/$1 ]]; then echo "$CALLER/$1"; else echo "$1"; fi
}

# tell_part: what to do with the answers of one part of several.
tell_part() {
    echo "Part $CHUNK of $CHUNKS is in $ANSWERS. A part is not scored; when all are there," \
        "--merge-chunks $CHUNKS in place of the two flags merges and scores them." >&2
}

# setup FOLDER CHECKPOINT TOKENS [flags]: sets TOKENS, BUDGET (its flag), METHOD, CHUNKS, CHUNK,
# FLAGS, PYTHON, MODEL_PATH, CKPT and DATA, and ANSWERS, QUESTIONS and IMAGES, which stay empty unless given. FLAGS
# may be empty, which bash 3 takes for unset: pass it on as ${FLAGS[@]+"${FLAGS[@]}"}.
setup() {
    local folder=$1 checkpoint=$2
    shift 2
    if [[ ! ${1:-} =~ ^([1-9][0-9]*|0?\.[0-9]*[1-9][0-9]*)$ ]]; then
        cat >&2 <<EOF
usage: bash $0 TOKENS [flags of the answering program, see llava.eval.model_vqa_loader]
TOKENS is how many visual tokens to keep in each layer on average, a positive whole number, or the
share of those that the picture has, such as 0.1${1:+; got "$1"}.
Environment: MODEL_PATH (checkpoint), DATA (folder of the benchmark), PYTHON.
EOF
        exit 2
    fi
    TOKENS=$1 BUDGET=(--target-token-num "$1")
    [[ $TOKENS != *.* ]] || BUDGET=(--target-fraction "$1")
    shift
    METHOD=autoprune CHUNKS=1 CHUNK=0 ANSWERS="" QUESTIONS="" IMAGES="" FLAGS=()
    while (($#)); do
        local name=${1%%=*} value
        case $name in
            --method | --num-chunks | --chunk-idx | --answers-file | --question-file | \
                --image-folder | --model-base | --vision-tower)
                if [[ $1 == *=* ]]; then
                    value=${1#*=}
                elif (($# > 1)); then
                    value=$2
                    shift
                else
                    echo "error: $name needs a value." >&2
                    exit 2
                fi
                case $name in
                    --method) METHOD=$value ;;
                    --num-chunks) CHUNKS=$value ;;
                    --chunk-idx) CHUNK=$value ;;
                    --answers-file)
                        [[ $value == /* ]] || value=$CALLER/$value
                        ANSWERS=$value
                        ;;
                    *)
                        value=$(from_caller "$value")
                        [[ $name != --question-file ]] || QUESTIONS=$value
                        [[ $name != --image-folder ]] || IMAGES=$value
                        ;;
                esac
                FLAGS+=("$name" "$value")
                ;;
            *) FLAGS+=("$1") ;;
        esac
        shift
    done

    if [[ -n ${PYTHON:-} ]]; then
        [[ $PYTHON != */* ]] || PYTHON=$(from_caller "$PYTHON")
    elif [[ -x .venv/bin/python ]]; then
        PYTHON=.venv/bin/python
    else
        PYTHON=python3
    fi
    MODEL_PATH=$(from_caller "${MODEL_PATH:-$PWD/models/${checkpoint##*/}}")
    CKPT=$(basename "$MODEL_PATH")
    DATA=$(from_caller "${DATA:-$PWD/playground/data/eval/$folder}")
}

# scale_depths: sets DEPTHS to the flag that scales published depths, meant for 32 layers, to this
# decoder. The paper's 13B numbers were made without, so decoders of 32 and of 40 layers take them as
# they are, and so does a name on the hub, whose config.json is not here. So does a caller who gives
# --x0 or --depth-layers.
scale_depths() {
    local layers flag
    DEPTHS=()
    [[ -e $MODEL_PATH/config.json ]] || return 0
    for flag in ${FLAGS[@]+"${FLAGS[@]}"}; do
        [[ ${flag%%=*} != --x0 && ${flag%%=*} != --depth-layers ]] || return 0
    done
    layers=$("$PYTHON" -c "import json, sys; config = json.load(open(sys.argv[1]))
print((config.get('text_config') or config).get('num_hidden_layers', 32))" \
        "$MODEL_PATH/config.json" 2>/dev/null) || return 0
    [[ $layers == 32 || $layers == 40 ]] || DEPTHS=(--depth-layers 32)
}

MISSING=""

# need PATH SOURCE: note that PATH is missing, if it is, and where it comes from.
need() {
    [[ -e $1 ]] || MISSING+="  $1"$'\n'"      $2"$'\n'
}

# need_model SOURCE: the checkpoint, which may also be a name on the hub such as owner/name.
need_model() {
    [[ $MODEL_PATH =~ ^[A-Za-z0-9_-][A-Za-z0-9._-]*/[A-Za-z0-9._-]+$ ]] || need "$MODEL_PATH" "$1"
}

stop_if_missing() {
    if [[ -n $MISSING ]]; then
        cat >&2 <<EOF
Missing, and where to get it:
$MISSING
MODEL_PATH and DATA (the folder of this benchmark) name other places. Without any of this, the
embedded demo runs at once:
  bash scripts/demo.sh
EOF
        exit 2
    fi
    if ! "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)'; then
        echo "error: $PYTHON has no torch. Install the package (pip install -e .), or set PYTHON." >&2
        exit 2
    fi
}

# answer PROGRAM [flags]: run an answering program; ends the script unless every answer is there.
answer() {
    local program=$1 status=0 devices=()
    shift
    IFS=, read -ra devices <<<"${CUDA_VISIBLE_DEVICES:-}"
    if ((${#devices[@]} > 1)) && [[ $CHUNKS == 1 && " ${FLAGS[*]-} " != *" --merge-chunks"* ]]; then
        answer_on_each "$program" "$@" || status=$?
    else
        "$PYTHON" -m "llava.eval.$program" "$@" &
        wait_for_all $! || status=$?
    fi
    if ((status == 3)); then
        echo "Not scored: some questions have no answer (see above). Repair their images," \
            "where these are the reason, and run this again, or score the others with" \
            "--allow-missing of the scoring program." >&2
    elif ((status != 0)); then
        echo "Not scored: the answers are not complete (exit status $status)." >&2
    fi
    ((status == 0)) || exit "$status"
}

# answer_on_each PROGRAM [flags]: a process for each of `devices`, each with its part of the
# questions, and then the merge of their answers. Each continues by itself when run again.
answer_on_each() {
    local program=$1 count=${#devices[@]} processes=() status=0 k
    shift
    for k in "${!devices[@]}"; do
        CUDA_VISIBLE_DEVICES=${devices[k]} "$PYTHON" -m "llava.eval.$program" "$@" \
            --num-chunks "$count" --chunk-idx "$k" \
            --answers-file "${ANSWERS%.jsonl}/${count}_$k.jsonl" &
        processes+=($!)
    done
    wait_for_all "${processes[@]}" || return
    "$PYTHON" -m "llava.eval.$program" "$@" --merge-chunks "$count"
}

# wait_for_all PROCESS...: wait until all have ended, whatever signal this script gets meanwhile: it
# is handed on, since what a shell puts into the background does not hear Ctrl-C. The status is that
# of the last that failed.
wait_for_all() {
    local status=0 code k heard
    trap 'heard=1; kill -TERM "$@" 2>/dev/null || true' INT TERM HUP
    for k in "$@"; do
        heard=1
        while ((heard)); do # a signal ends the waiting, not the process
            heard=0 code=0
            wait "$k" || code=$?
        done
        ((code == 0)) || status=$code
    done
    trap - INT TERM HUP
    return "$status"
}
