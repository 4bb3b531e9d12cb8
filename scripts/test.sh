#!/usr/bin/env bash
# Sets up what the tests need, then runs them, on every core. Arguments go to pytest.
#   bash scripts/test.sh [-k NAME ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

prepare_environment dev
# A thread for each process: tiny models gain nothing from more, and processes would fight for cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec .venv/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal "$@"
