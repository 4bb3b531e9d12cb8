"""Not a test: model_vqa_loader on the stub model, for tests that start processes."""

from __future__ import annotations

import sys

import llava.model.builder
from llava.eval.model_vqa_loader import main
from tests.eval.stub import StubModel

llava.model.builder.load_pretrained_model = StubModel().load

if __name__ == "__main__":
    sys.exit(main())
