# What the script of a benchmark needs; it sources this file. Changes to the checkout, finds PYTHON,
# and tells llava.eval.benchmark where the user's relative paths start and what the user typed.
set -euo pipefail
export LLAVA_CALLER=$PWD LLAVA_SCRIPT=$0
unset CDPATH # it would send a relative cd elsewhere
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python3
    [[ ! -x .venv/bin/python ]] || PYTHON=.venv/bin/python
elif [[ $PYTHON == */* && -e $LLAVA_CALLER/$PYTHON ]]; then
    PYTHON=$LLAVA_CALLER/$PYTHON
fi
if ! "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)'; then
    echo "error: $PYTHON has no torch. Install the package (pip install -e .), or set PYTHON." >&2
    exit 2
fi
