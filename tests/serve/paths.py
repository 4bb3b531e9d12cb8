"""Where the embedded checkpoint and a picture lie."""

from pathlib import Path

_PLAYGROUND = Path(__file__).parents[2] / "playground"
DEMO = _PLAYGROUND / "demo/llava-demo"
PICTURE = _PLAYGROUND / "data/mini/textvqa/train_images/scene000000.jpg"
