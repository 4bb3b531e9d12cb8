#!/usr/bin/env bash
# lmms-eval end to end, offline once it is installed: an environment of its own (.venv-lmms), the
# tests that need it, then mini benchmarks with the embedded checkpoint, unpruned and with AutoPrune
# at 64 tokens, and their tables. CPU is enough.
#   bash scripts/lmms_eval.sh      LIMIT: questions of each task      TASKS: which, with commas
# Exit status 3: it could not be installed, and nothing was run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

LIMIT=${LIMIT:-16}
TASKS=${TASKS:-mini_textvqa_noocr,mini_gqa,mini_scienceqa,mini_vqav2}

prepare_environment dev
python=.venv-lmms/bin/python
stamp=.venv-lmms/installed-$(cat pyproject.toml scripts/constraints-lmms.txt | cksum | tr ' ' -)
if [[ ! -e $stamp ]]; then
    echo "Installing lmms-eval with the versions of scripts/constraints-lmms.txt ..." >&2
    rm -rf .venv-lmms
    .venv/bin/python -m venv .venv-lmms
    site='import site; print(site.getsitepackages()[0])'
    .venv/bin/python -c "$site" >"$($python -c "$site")/shared.pth"
    if ! $python -m pip install --quiet --disable-pip-version-check \
        --constraint scripts/constraints-lmms.txt --editable '.[lmms]'; then
        echo "lmms-eval could not be installed: nothing was run." >&2
        exit 3
    fi
    # Made for a torch with CUDA, it cannot be imported beside one without, and transformers trips
    # over it; nothing here needs it.
    $python -c 'import torchvision' 2>/dev/null || $python -m pip uninstall --quiet --yes torchvision
    touch "$stamp"
fi

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HOME=$PWD/.venv-lmms/hf
$python -m pytest -q -p no:cacheprovider tests/eval/lmms

out=.venv-lmms/results
for method in none autoprune,target_token_num=64; do
    $python -m lmms_eval --model autoprune \
        --model_args "pretrained=playground/demo/llava-demo,method=$method" \
        --include_path playground/lmms-eval --tasks "$TASKS" --limit "$LIMIT" --batch_size 8 \
        --log_samples --output_path $out 2>$out.log >$out.txt || { tail -n 20 $out.log $out.txt; exit 1; }
    echo "method=$method, $LIMIT questions of each task"
    grep 'visual tokens a layer' $out.log
    grep '^|' $out.txt
done
