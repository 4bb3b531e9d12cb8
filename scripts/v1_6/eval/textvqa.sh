#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/../../checkout.sh"
exec "$PYTHON" -m llava.eval.benchmark textvqa "$@" --checkpoint liuhaotian/llava-v1.6-vicuna-7b
