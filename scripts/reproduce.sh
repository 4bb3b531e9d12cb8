#!/usr/bin/env bash
# The first hour with a GPU: is the package right about the checkpoint, how fast is it, and does it
# reach the paper's numbers; docs/first-gpu-hour.md has more. The same command again continues.
#   bash scripts/reproduce.sh [flags of llava.analysis.reproduce]    MODEL_PATH, DATA: other places
source "$(dirname "${BASH_SOURCE[0]}")/checkout.sh"
exec "$PYTHON" -m llava.analysis.reproduce "$@"
