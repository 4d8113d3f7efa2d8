"""Draw a classifier's answers on its images: a column per class, then the mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from trainers.pictures.sheet import (
    CARD,
    HEADER,
    INK,
    MARGIN,
    PAPER,
    RIGHT,
    TRACK,
    WRONG,
    Heading,
    draw_heading,
    write,
)  # fmt: skip

ROWS, COLUMNS, GAP = 4, 12, 12
"""Images shown of each class, classes shown, and pixels between them."""
TILE, CARD_WIDTH, CARD_HEIGHT = 84, 100, 138
NOTE, ROOM = 58, CARD_WIDTH - 8


@dataclass(frozen=True)
class Answer:
    """One image (uint8: HW1 with ink bright, or HW3 in RGB), the truth, the answer, how sure."""

    image: NDArray[Any]
    truth: str
    answer: str
    confidence: float


def draw_answers(title: str, answers: Sequence[Answer]) -> Image.Image:
    """Draw four images of each class and the surest mistakes: right in green, wrong in red.

    Of more than twelve classes, twelve are shown.
    """
    every = sorted({answer.truth for answer in answers})
    classes = every[:: -(-len(every) // COLUMNS)]
    mistakes = [answer for answer in answers if answer.answer != answer.truth]
    mistakes.sort(key=lambda answer: -answer.confidence)
    sheet = _blank(len(classes), mistakes=bool(mistakes))
    draw_heading(sheet, _heading(title, len(answers), len(mistakes)))
    for column, label in enumerate(classes):
        of_class = [answer for answer in answers if answer.truth == label]
        for row, answer in enumerate(of_class[:ROWS]):
            _card(sheet, answer, column, _row_top(row))
    if mistakes:
        top = _row_top(ROWS) - GAP
        shown = mistakes[: len(classes)]
        write(sheet, (MARGIN, top + NOTE // 2), _note(len(shown), len(mistakes)), 24, WRONG)
        for column, answer in enumerate(shown):
            _card(sheet, answer, column, top + NOTE)
    return sheet


def _blank(columns: int, mistakes: bool) -> Image.Image:
    width = 2 * MARGIN + columns * (CARD_WIDTH + GAP) - GAP
    bottom = _row_top(ROWS) - GAP + (NOTE + CARD_HEIGHT if mistakes else 0)
    return Image.new("RGB", (width, bottom + MARGIN), PAPER)


def _row_top(row: int) -> int:
    return HEADER + row * (CARD_HEIGHT + GAP)


def _heading(title: str, total: int, wrong: int) -> Heading:
    return Heading(
        title,
        detail="test images it never trained on; the bar is its confidence",
        score=f"{(total - wrong) / total:.1%}",
        note=f"{total - wrong:,} of {total:,} right",
    )


def _note(shown: int, mistakes: int) -> str:
    if mistakes == 1:
        return "The only mistake"
    return f"All {mistakes} mistakes" if shown == mistakes else f"{shown} of {mistakes} mistakes"


def _card(sheet: Image.Image, answer: Answer, column: int, top: int) -> None:
    left = MARGIN + column * (CARD_WIDTH + GAP)
    good = answer.answer == answer.truth
    colour = RIGHT if good else WRONG
    draw = ImageDraw.Draw(sheet)
    box = (left, top, left + CARD_WIDTH, top + CARD_HEIGHT)
    draw.rounded_rectangle(box, 9, fill=CARD, outline=None if good else WRONG, width=2)
    sheet.paste(_tile(answer.image), (left + (CARD_WIDTH - TILE) // 2, top + 8))
    middle, line = left + CARD_WIDTH // 2, top + TILE + 26
    short = len(answer.answer + answer.truth) < 4
    if good:
        write(sheet, (middle, line), answer.answer, 26 if short else 15, colour, "mm", ROOM)
    elif short:
        write(sheet, (left + 12, line), answer.answer, 26, colour)
        write(sheet, (left + CARD_WIDTH - 10, line), f"is {answer.truth}", 20, INK, anchor="rm")
    else:
        write(sheet, (middle, line - 8), answer.answer, 14, colour, "mm", ROOM)
        write(sheet, (middle, line + 7), f"is {answer.truth}", 13, INK, "mm", ROOM)
    _bar(draw, (left + 12, top + CARD_HEIGHT - 10), answer.confidence, colour)


def _tile(image: NDArray[Any]) -> Image.Image:
    shown = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    shown = shown.resize((TILE, TILE), Image.Resampling.BICUBIC)
    return ImageOps.colorize(shown, CARD, INK) if shown.mode == "L" else shown


def _bar(draw: ImageDraw.ImageDraw, at: tuple[int, int], share: float, colour: str) -> None:
    (left, top), length = at, CARD_WIDTH - 24
    draw.rounded_rectangle((left, top, left + length, top + 4), 2, fill=TRACK)
    draw.rounded_rectangle((left, top, left + max(4, length * share), top + 4), 2, fill=colour)
