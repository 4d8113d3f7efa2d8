"""Korean sentences whose particle follows from the sound before it, all procedural.

A sentence is ``[when ]{noun}{은 or 는} {verb}.``: the topic particle is 은 after a final consonant,
else 는; the verb fits the noun, and its tense fits the word at the start, if any.
"""

from __future__ import annotations

import random

FIRST, LAST = 0xAC00, 0xD7A3
"""The Hangul syllables of Unicode; 28 in a row differ in their final consonant only."""
FINALS = 28
PARTICLES = ("은", "는")

BEINGS = ("나", "우리", "친구", "언니", "학생", "선생님", "고양이", "곰", "말", "토끼")
THINGS = ("책", "그림", "편지", "사과", "빵", "밥", "우유", "가방", "의자", "연필")
NATURE = ("비", "눈", "바람", "강", "산", "바다", "하늘", "별", "달", "꽃")
NOUNS = (*BEINGS, *THINGS, *NATURE)
HELD_OUT = ("동생", "아기", "개", "종이", "잔", "바지", "구름", "해", "섬")
"""Nouns that no training text has, three of each kind."""
HELD_OUT_KINDS = (HELD_OUT[:3], HELD_OUT[3:6], HELD_OUT[6:])

WHEN = ("", "어제", "지금", "내일")
TENSE = (0, 0, 1, 2)
"""Which form of a verb each of ``WHEN`` wants: past, present or future."""
VERBS = (
    (("잤다", "잔다", "잘 것이다"), ("웃었다", "웃는다", "웃을 것이다")),
    (("있었다", "있다", "있을 것이다"), ("좋았다", "좋다", "좋을 것이다")),
    (("보였다", "보인다", "보일 것이다"), ("변했다", "변한다", "변할 것이다")),
)

INITIAL = "g kk n d tt r m b pp s ss - j jj ch k t p h".replace("-", "").split(" ")
VOWEL = [
    "a",
    "ae",
    "ya",
    "yae",
    "eo",
    "e",
    "yeo",
    "ye",
    "o",
    "wa",
    "wae",
    "oe",
    "yo",
    "u",
    "wo",
    "we",
    "wi",
    "yu",
    "eu",
    "ui",
    "i",
]
FINAL = [
    "",
    "k",
    "k",
    "k",
    "n",
    "n",
    "n",
    "t",
    "l",
    "k",
    "m",
    "l",
    "l",
    "l",
    "p",
    "l",
    "m",
    "p",
    "p",
    "t",
    "t",
    "ng",
    "t",
    "t",
    "k",
    "t",
    "p",
    "t",
]


def has_final(character: str) -> bool:
    """Return whether a character is a Hangul syllable that ends in a consonant."""
    return FIRST <= ord(character) <= LAST and (ord(character) - FIRST) % FINALS != 0


def particle(noun: str) -> str:
    """Return the topic particle of a noun: 은 after a final consonant, else 는."""
    return PARTICLES[0] if has_final(noun[-1]) else PARTICLES[1]


def sentences(seed: int, count: int, held_out: bool = False) -> str:
    """Return so many sentences, a line each; of the nouns of training, or of the held-out ones."""
    draw = random.Random(seed)
    kinds = HELD_OUT_KINDS if held_out else (BEINGS, THINGS, NATURE)
    return "".join(_sentence(draw, kinds) + "\n" for _ in range(count))


def romanised(text: str) -> str:
    """Return text with its Hangul syllables in Latin letters, one by one."""
    return "".join(_latin(character) for character in text)


def _sentence(draw: random.Random, kinds: tuple[tuple[str, ...], ...]) -> str:
    kind, when = draw.randrange(len(kinds)), draw.randrange(len(WHEN))
    noun = draw.choice(kinds[kind])
    verb = draw.choice(VERBS[kind])[TENSE[when]]
    return f"{WHEN[when]} {noun}{particle(noun)} {verb}.".lstrip()


def _latin(character: str) -> str:
    if not FIRST <= ord(character) <= LAST:
        return character
    rest, final = divmod(ord(character) - FIRST, FINALS)
    initial, vowel = divmod(rest, len(VOWEL))
    return INITIAL[initial] + VOWEL[vowel] + FINAL[final]
