"""Draw a classifier's answers on grey images: a column per class, then the mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

PAPER, CARD, INK, FAINT, TRACK = "#eef1f5", "#ffffff", "#16202c", "#66727f", "#e3e7ec"
RIGHT, WRONG = "#178a4a", "#cf2e2a"
ROWS, MARGIN, GAP = 4, 40, 12
TILE, CARD_WIDTH, CARD_HEIGHT = 84, 100, 138
HEADER, NOTE = 118, 58


@dataclass(frozen=True)
class Answer:
    """One image (uint8, ink bright) with what was answered, how surely, and what is true."""

    image: NDArray[Any]
    truth: int | str
    answer: int | str
    confidence: float


def draw_answers(title: str, answers: Sequence[Answer]) -> Image.Image:
    """Draw four images of each class and the surest mistakes: right in green, wrong in red."""
    classes = sorted({answer.truth for answer in answers}, key=str)
    mistakes = [answer for answer in answers if answer.answer != answer.truth]
    mistakes.sort(key=lambda answer: -answer.confidence)
    sheet = _blank(len(classes), mistakes=bool(mistakes))
    _header(sheet, title, len(answers), len(mistakes))
    for column, label in enumerate(classes):
        of_class = [answer for answer in answers if answer.truth == label]
        for row, answer in enumerate(of_class[:ROWS]):
            _card(sheet, answer, column, _row_top(row))
    if mistakes:
        top = _row_top(ROWS) - GAP
        shown = mistakes[: len(classes)]
        _write(sheet, (MARGIN, top + NOTE // 2), _note(len(shown), len(mistakes)), 24, WRONG)
        for column, answer in enumerate(shown):
            _card(sheet, answer, column, top + NOTE)
    return sheet


def _blank(columns: int, mistakes: bool) -> Image.Image:
    width = 2 * MARGIN + columns * (CARD_WIDTH + GAP) - GAP
    bottom = _row_top(ROWS) - GAP + (NOTE + CARD_HEIGHT if mistakes else 0)
    return Image.new("RGB", (width, bottom + MARGIN), PAPER)


def _row_top(row: int) -> int:
    return HEADER + row * (CARD_HEIGHT + GAP)


def _header(sheet: Image.Image, title: str, total: int, wrong: int) -> None:
    right = (total - wrong) / total
    _write(sheet, (MARGIN, 46), title, 38, INK)
    _write(sheet, (sheet.width - MARGIN, 46), f"{right:.1%}", 46, RIGHT, anchor="rm")
    detail = "test images it never trained on; the bar is its confidence"
    _write(sheet, (MARGIN, 86), detail, 20, FAINT)
    count = f"{total - wrong:,} of {total:,} right"
    _write(sheet, (sheet.width - MARGIN, 86), count, 20, FAINT, anchor="rm")


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
    image = Image.fromarray(answer.image).resize((TILE, TILE), Image.Resampling.BICUBIC)
    sheet.paste(ImageOps.colorize(image, CARD, INK), (left + (CARD_WIDTH - TILE) // 2, top + 8))
    middle, line = left + CARD_WIDTH // 2, top + TILE + 26
    short = len(f"{answer.answer}{answer.truth}") < 4
    if good:
        _write(sheet, (middle, line), str(answer.answer), 26 if short else 14, colour, "mm")
    elif short:
        _write(sheet, (left + 12, line), str(answer.answer), 26, colour)
        _write(sheet, (left + CARD_WIDTH - 10, line), f"is {answer.truth}", 20, INK, anchor="rm")
    else:
        _write(sheet, (middle, line - 7), str(answer.answer), 14, colour, "mm")
        _write(sheet, (middle, line + 7), f"is {answer.truth}", 11, INK, "mm")
    _bar(draw, (left + 12, top + CARD_HEIGHT - 10), answer.confidence, colour)


def _bar(draw: ImageDraw.ImageDraw, at: tuple[int, int], share: float, colour: str) -> None:
    (left, top), length = at, CARD_WIDTH - 24
    draw.rounded_rectangle((left, top, left + length, top + 4), 2, fill=TRACK)
    draw.rounded_rectangle((left, top, left + max(4, length * share), top + 4), 2, fill=colour)


def _write(
    sheet: Image.Image, at: tuple[int, int], text: str, size: int, colour: str, anchor: str = "lm"
) -> None:
    font = ImageFont.load_default(size=size)
    ImageDraw.Draw(sheet).text(at, text, fill=colour, font=font, anchor=anchor)
