"""Recordings of spoken digit strings: a folder of wav files with transcripts, in fixed parts.

Either ``name.wav`` lies beside ``name.txt``, in any depth (the folder that holds it names the
speaker), or ``transcripts.tsv`` has a line for each file: its path, what is said, and the speaker
if known, with tabs between.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from dlplatform.errors import UsageError
from trainers.data.parts import deal
from trainers.data.wav import read_wav
from trainers.synth.speech import RATE, WORDS, Utterance

TABLE = "transcripts.tsv"
ALLOWED = f"a folder with name.wav beside name.txt, or with {TABLE} (file, tab, digits)"
SAID = {word: number for number, word in enumerate(WORDS)} | {"oh": 0}


@lru_cache(maxsize=2)
def load_speech(folder: str) -> dict[str, tuple[Utterance, ...]]:
    """Return the parts ``train``, ``val`` and ``test``; no speaker is in two of them.

    With fewer than three speakers known, recordings are dealt one by one. Raises UsageError for
    a folder that is not as described above, naming file and line.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f"task.data={folder} is not a folder - allowed: {ALLOWED}")
    table = root / TABLE
    listed = _listed(root, table) if table.is_file() else _beside(root)
    spoken = [
        Utterance(read_wav(path, RATE), _digits(text, where), speaker)
        for path, text, speaker, where in listed
    ]
    known = len({one.speaker for one in spoken if one.speaker}) >= 3
    keys = [one.speaker if known else str(n) for n, one in enumerate(spoken)]
    places = deal(keys, folder)
    return {
        part: tuple(one for one, key in zip(spoken, keys, strict=True) if places[key] == part)
        for part in ("train", "val", "test")
    }


def _listed(root: Path, table: Path) -> list[tuple[Path, str, str, str]]:
    rows = []
    for number, line in enumerate(_text(table).splitlines(), 1):
        cells, where = line.split("\t"), f"{table}, line {number}"
        if not line.strip():
            continue
        if len(cells) not in (2, 3) or not (root / cells[0]).is_file():
            raise UsageError(
                f"{where}: {line!r} does not name a wav file and its digits - allowed: "
                "FILE, tab, DIGITS and perhaps tab, SPEAKER - correct the line"
            )
        rows.append((root / cells[0], cells[1], cells[2] if len(cells) == 3 else "", where))
    return rows


def _beside(root: Path) -> list[tuple[Path, str, str, str]]:
    rows = []
    for path in sorted(root.rglob("*.wav")):
        text = path.with_suffix(".txt")
        if not text.is_file():
            raise UsageError(f"{path} has no {text.name} beside it - allowed: {ALLOWED}")
        speaker = "" if path.parent == root else path.parent.name
        rows.append((path, _text(text), speaker, str(text)))
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error}) - allowed: UTF-8 text") from error


def _digits(text: str, where: str) -> tuple[int, ...]:
    """Return the digits of "four seven", "4 7" or "47"."""
    digits: list[int] = []
    for word in text.lower().split():
        if word.isascii() and word.isdigit():
            digits += map(int, word)
        elif word in SAID:
            digits.append(SAID[word])
        else:
            raise UsageError(
                f"{where}: {word!r} is no digit - allowed: 0 to 9 and {', '.join(SAID)}"
            )
    if not digits:
        raise UsageError(f"{where}: says no digit - allowed: one or more - remove the recording")
    return tuple(digits)
