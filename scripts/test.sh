#!/usr/bin/env bash
# Sets up what the tests need, then runs them. Arguments go to pytest.
#   bash scripts/test.sh [-k NAME ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

prepare_environment dev
exec .venv/bin/python -m pytest "$@"
