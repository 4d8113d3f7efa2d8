"""What a network writes next: a tile of bars for each beginning, and the text it makes of it.

The font of pillow has no Hangul, so it is romanised, and characters are named by their code point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from trainers.pictures.sheet import (
    CARD,
    FAINT,
    INK,
    RIGHT,
    TRACK,
    WRONG,
    Heading,
    Row,
    Tile,
    draw_sheet,
    write,
)  # fmt: skip
from trainers.synth.korean import FIRST, LAST, romanised

WIDTH, HEIGHT, BAR = 330, 116, 26


@dataclass(frozen=True)
class Written:
    """A beginning, the character that should follow, what the network expects, what it wrote."""

    prompt: str
    truth: str
    chances: Mapping[str, float]
    text: str


def draw_writing(title: str, note: str, rows: Mapping[str, Sequence[Written]]) -> Image.Image:
    """Draw rows of beginnings by their labels, the right next character in green."""
    tiles = {label: [_tile(one) for one in written] for label, written in rows.items()}
    asked = [one for written in rows.values() for one in written]
    right = sum(max(one.chances, key=lambda c: one.chances[c]) == one.truth for one in asked)
    heading = Heading(
        title,
        "chances of the next character after each beginning",
        f"{right} of {len(asked)}",
        note,
    )
    return draw_sheet(heading, [Row(some, label) for label, some in tiles.items()], HEIGHT)


def legible(text: str) -> str:
    """Return a text in letters that the font has: Hangul romanised, else the code point."""
    shown = (c if c.isascii() and c.isprintable() else f"U+{ord(c):04X} " for c in romanised(text))
    return "".join(shown)


def name(character: str) -> str:
    """Return how a character is called in a picture: romanised and its code point."""
    code = f"U+{ord(character):04X}" if len(character) == 1 else character
    if len(character) == 1 and FIRST <= ord(character) <= LAST:
        return f"{romanised(character)}  {code}"
    if character.isascii() and character.isprintable() and len(character) == 1:
        return f"'{character}'"
    return code


def _tile(one: Written) -> Tile:
    image = Image.new("RGB", (WIDTH, HEIGHT), CARD)
    draw = ImageDraw.Draw(image)
    write(image, (12, 20), _end(legible(one.prompt), 30) + " ...", 18, INK)
    for line, (character, chance) in enumerate(one.chances.items()):
        top = 38 + line * BAR
        colour = RIGHT if character == one.truth else WRONG if line == 0 else FAINT
        write(image, (12, top + 10), name(character), 15, colour)
        draw.rectangle((140, top + 2, 270, top + 18), fill=TRACK)
        draw.rectangle((140, top + 2, 140 + round(130 * chance), top + 18), fill=colour)
        write(image, (WIDTH - 8, top + 10), f"{chance:.3f}", 15, colour, "rm")
    written = one.text[len(one.prompt) :].lstrip("\n").split("\n")[0]
    return Tile(image, (_end(legible(one.prompt), 12) + legible(written),))


def _end(text: str, count: int) -> str:
    return text if len(text) <= count else "…" + text[-count:]
