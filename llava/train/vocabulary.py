"""What scenes are made of: names, their colours on the picture, and what training never shows."""

from __future__ import annotations

COLOURS = {
    "red": (205, 35, 40),
    "orange": (242, 135, 25),
    "yellow": (245, 220, 45),
    "green": (35, 145, 60),
    "blue": (40, 80, 205),
    "purple": (130, 45, 165),
    "white": (246, 246, 240),
    "black": (25, 25, 28),
}

#: How often a shape is drawn against the others: the popular ones twice as often.
SHAPES = {
    "circle": 2,
    "square": 2,
    "triangle": 2,
    "star": 2,
    "heart": 1,
    "cross": 1,
    "ring": 1,
    "moon": 1,
    "arrow": 1,
    "diamond": 1,
}

#: Shapes that are often together, which is what adversarial questions about absent ones exploit.
PARTNERS = {
    "circle": "square",
    "square": "circle",
    "triangle": "diamond",
    "diamond": "triangle",
    "star": "moon",
    "moon": "star",
    "heart": "arrow",
    "arrow": "heart",
    "cross": "ring",
    "ring": "cross",
}

PATTERNS = ("plain", "striped", "dotted")
SIZES = {"small": (28, 38), "large": (58, 74)}  # side in pixels, inclusive

PLACES = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)

# fmt: off
WORDS = (
    "stop", "exit", "open", "shop", "park", "taxi", "milk", "cafe", "bank", "hotel", "book",
    "farm", "gate", "fire", "ice", "pizza", "bus", "zoo", "key", "door", "left", "slow", "food",
    "fish", "tea", "art", "jazz", "king", "lake", "moon", "news", "north", "club", "gym",
    "port", "quiz", "road", "sale", "west", "yoga",
)
# fmt: on

# Never in a training or validation scene; a part of the test scenes has one of them.
UNSEEN_WORDS = ("boat", "desk", "frog", "lamp", "wolf", "sofa")
UNSEEN_THINGS = (
    ("purple", "star"),
    ("green", "heart"),
    ("orange", "ring"),
    ("white", "arrow"),
    ("blue", "triangle"),
)
