"""Token names and indices that LLaVA's data, prompts and checkpoints agree on.

Source: haotian-liu/LLaVA 1.2.2, names and values only.
"""

from __future__ import annotations

# Label of positions that do not count in the loss (torch's cross entropy skips it).
IGNORE_INDEX = -100

# Stands for one image in `input_ids`; no vocabulary has negative ids, so it cannot clash.
IMAGE_TOKEN_INDEX = -200

DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"

# Marks in a user's query where the image goes, as an alternative to "first".
IMAGE_PLACEHOLDER = "<image-placeholder>"

# LLaVA-1.6: orders of the tiles' tokens, and whose way of preparing pictures; see `llava.anyres`.
MERGE_TYPES = ("flat", "spatial", "spatial_unpad")
READINGS = ("llava", "llava-hf", "fill")
