"""Which patches of a picture are kept, drawn over it.

A kept patch shows the picture as it is, a dropped one is grey and dark. A patch that stands for
several merged ones has a frame, and the patches merged into it are tinted in the frame's colour.
Patches that show only the padding around the picture have a diagonal line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from .traced import TracedAnswer
from .views import View

MERGED = (0, 225, 225)  # cyan: frame of a merged token, tint of what was merged into it
LETTERBOX = (175, 175, 175)
ELSEWHERE = -1  # in place of a merged token's patch: it is on another view, or none
CELL = 14  # pixels of a patch: CLIP ViT-L/14 at 336 px is drawn 1 : 1

_DIM = 0.28  # brightness of what was dropped
_TINT = 0.35
_GAP = 8
_FONT = 13


def draw(
    picture: Image.Image,
    grid: int | tuple[int, int],
    kept: Iterable[int],
    *,
    merged: Mapping[int, Sequence[int]] | None = None,
    letterbox: Iterable[int] = (),
    cell: int = CELL,
) -> Image.Image:
    """The picture with its dropped patches dimmed, RGB, `cell` pixels a patch.

    Args:
        picture: what the model saw (`llava.analysis.views`); resized where it is not that large.
        grid: patches a side of a square, or (columns, rows); patch ids count row by row from 0.
            The id behind the last is the CLS token, which is nowhere on the picture, and is left
            out.
        kept: ids of the patches that are there.
        merged: of these, the ones that stand for several, with the ids merged into each;
            ELSEWHERE is one that is not on this picture.
        letterbox: ids of the patches that show only padding.

    Raises:
        ValueError: the picture is no square though its grid is, or an id is not on it.
    """
    if isinstance(grid, int) and picture.width != picture.height:
        raise ValueError(
            f"expected the square picture that the model saw, got {picture.size}: pad or crop it "
            "first (llava.analysis.views.seen)"
        )
    columns, rows = (grid, grid) if isinstance(grid, int) else grid
    cls = columns * rows
    merged = {} if merged is None else {k: list(v) for k, v in merged.items() if k != cls}
    kept, letterbox = [patch for patch in kept if patch != cls], list(letterbox)
    members = [patch for group in merged.values() for patch in group if patch != cls]
    merged.pop(ELSEWHERE, None)
    for patch in [*kept, *merged, *members, *letterbox]:
        if not 0 <= patch < cls:
            raise ValueError(f"patch {patch} is not on a picture of {columns} x {rows} patches")
    size = columns * cell, rows * cell
    whole = picture.convert("RGB")
    if whole.size != size:
        whole = whole.resize(size, Image.Resampling.BICUBIC)
    dark = _dark(whole)
    tinted = Image.blend(dark, Image.new("RGB", dark.size, MERGED), _TINT)
    result = Image.composite(tinted, dark, _mask(members, (columns, rows), cell))
    result.paste(whole, mask=_mask(kept, (columns, rows), cell))
    pen = ImageDraw.Draw(result)
    for patch in letterbox:
        left, top = patch % columns * cell, patch // columns * cell
        pen.line((left, top + cell - 1, left + cell - 1, top), fill=LETTERBOX)
    for patch in merged:
        left, top = patch % columns * cell, patch // columns * cell
        box = (left, top, left + cell - 1, top + cell - 1)
        pen.rectangle(box, outline=MERGED, width=max(cell // 7, 1))
    return result


def panels(answer: TracedAnswer, layer: int, cell: int = CELL) -> list[Image.Image]:
    """What enters `layer`, drawn over each view; the number of layers is what is left at last.

    A picture whose tokens each show all of it is the darker, the fewer of them are left.

    Raises:
        ValueError: nothing is known of where tokens are.
    """
    if not answer.views:
        raise ValueError("where the visual tokens of this picture are is not known")
    kept = answer.kept[layer]
    return [
        _faded(view, view.count(kept) / len(view.tokens))
        if view.mixed
        else draw(
            view.picture,
            (view.columns, view.rows),
            view.patches(kept),
            merged=merged_on(view, answer.merged[layer]),
            letterbox=view.patches(view.padding),
            cell=cell,
        )
        for view in answer.views
    ]


def _faded(view: View, share: float) -> Image.Image:
    return Image.blend(_dark(view.picture), view.picture, share)


def _dark(picture: Image.Image) -> Image.Image:
    return picture.convert("L").point(lambda value: value * _DIM).convert("RGB")


def merged_on(view: View, merged: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
    """Merged tokens on a view by their patches; -1 holds what is in tokens of other views."""
    result: dict[int, list[int]] = {}
    for centre, members in merged.items():
        place = next(iter(view.patches([centre])), ELSEWHERE)
        result.setdefault(place, []).extend(view.patches(members))
    return result


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures side by side on white, flush at their tops."""
    width = sum(picture.width + _GAP for picture in pictures) - _GAP
    result = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        result.paste(picture, (left, 0))
        left += picture.width + _GAP
    return result


def strip(
    panels: Sequence[Image.Image],
    titles: Sequence[str],
    columns: int | None = None,
    heading: str = "",
) -> Image.Image:
    """Panels of one size side by side, each below its title; `heading` over all of them.

    With `columns`, a new row begins after that many. Long texts are broken between words.

    Raises:
        ValueError: no panel, panels of several sizes, or not one title for each.
    """
    sizes = {panel.size for panel in panels}
    if len(sizes) != 1 or len(titles) != len(panels):
        raise ValueError(
            f"expected panels of one size and a title for each, got sizes {sorted(sizes)} and "
            f"{len(titles)} titles for {len(panels)} panels"
        )
    columns = min(columns or len(panels), len(panels))
    width, height = panels[0].size
    font = _font()
    texts = [_wrapped(title, width, font) for title in titles]
    title_height = max(_height(text, font) for text in texts)
    total = columns * width + (columns + 1) * _GAP
    head = _wrapped(heading, total - 2 * _GAP, font)
    top = _height(head, font) + 2 * _GAP if heading else _GAP
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (total, top + rows * (title_height + height + 2 * _GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    pen.multiline_text((_GAP, _GAP), head, fill="black", font=font)
    for number, (panel, text) in enumerate(zip(panels, texts)):
        row, column = divmod(number, columns)
        left = _GAP + column * (width + _GAP)
        upper = top + row * (title_height + height + 2 * _GAP)
        pen.multiline_text((left, upper), text, fill="black", font=font)
        sheet.paste(panel, (left, upper + title_height + _GAP // 2))
    return sheet


def stack(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets one below the other on white, flush left."""
    size = max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)
    result = Image.new("RGB", size, "white")
    top = 0
    for sheet in sheets:
        result.paste(sheet, (0, top))
        top += sheet.height
    return result


def _mask(patches: Iterable[int], grid: tuple[int, int], cell: int) -> Image.Image:
    small = Image.new("L", grid)
    for patch in patches:
        small.putpixel((patch % grid[0], patch // grid[0]), 255)
    return small.resize((grid[0] * cell, grid[1] * cell), Image.Resampling.NEAREST)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT)


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if not isinstance(font, ImageFont.FreeTypeFont):
        # Pillow without FreeType has a font of Latin letters that raises on all others.
        text = text.encode("latin-1", "replace").decode("latin-1")
    lines = []
    for line in text.split("\n"):
        current = ""
        for word in line.split(" "):
            longer = f"{current} {word}" if current else word
            if current and font.getlength(longer) > width:
                lines.append(current)
                longer = word
            current = longer
        lines.append(current)
    return "\n".join(lines)


def _height(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    pen = ImageDraw.Draw(Image.new("L", (1, 1)))
    # Lines that differ in their letters would stand at different heights.
    lines = "\n".join("Ag" for _ in text.split("\n"))
    return int(pen.multiline_textbbox((0, 0), lines, font=font)[3]) + 2
