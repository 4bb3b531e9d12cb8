#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/../../checkout.sh"
exec "$PYTHON" -m llava.eval.benchmark mme "$@" --checkpoint liuhaotian/llava-v1.5-13b
