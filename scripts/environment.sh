# The environment that demo.sh and test.sh share: .venv in the checkout. They source this file.
#   prepare_environment [EXTRA]   creates and fills it; does nothing when it is up to date

prepare_environment() {
    local extra=${1:-} base=${PYTHON:-python3} target stamp
    if [[ ! -x .venv/bin/python ]]; then
        if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
            echo "error: Python 3.10 or newer is needed; PYTHON=/path/to/python names another." >&2
            exit 2
        fi
        echo "Setting up .venv ..." >&2
        "$base" -m venv .venv
    fi
    # What is installed follows from these two files alone, so their checksum says if it is current.
    stamp=.venv/installed-${extra:-base}-$(cat pyproject.toml scripts/constraints.txt | cksum | tr ' ' -)
    if [[ ! -e $stamp ]]; then
        target=".${extra:+[$extra]}"
        echo "Installing $target with the versions of scripts/constraints.txt ..." >&2
        .venv/bin/python -m pip install --quiet --disable-pip-version-check \
            --constraint scripts/constraints.txt --editable "$target"
        touch "$stamp"
    fi
}
