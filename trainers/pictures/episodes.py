"""Played episodes: moments in rows, animated files, and the answers to a user's files.

Shape legend: H height, W width, A actions, K stacked observations.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageSequence
from torch import Tensor, nn

from trainers.blocks.qlearning import Episodes, Moment, greedy, play, values
from trainers.data.requests import read_request, refused
from trainers.pictures.files import open_picture
from trainers.pictures.sheet import FAINT, INK, Heading, Row, Tile, draw_sheet
from trainers.synth.games.game import BRIGHT, DIM, GREY, Array, Game

SHOWN, ZOOM, FRAME_MS = 8, 8, 60
"""Moments in a row; pixels of a file for one of the screen; time that a frame is shown."""
ALLOWED = '{"seed": a whole number} or {"observation": [numbers]}'
COLOURS = {DIM: (62, 96, 158), GREY: (235, 148, 52), BRIGHT: (255, 255, 255)}
"""Of our own games on the sheet."""


class Played(NamedTuple):
    """Episodes of one player, and its mean return over many."""

    name: str
    told: Episodes
    mean: float


def draw_episodes(
    title: str, rows: Sequence[Played], actions: Sequence[str], net: nn.Module
) -> Image.Image:
    """Draw an episode of each player in moments, with the values of all actions under them."""
    best, other = rows
    heading = Heading(
        title,
        detail="one episode each from the same start; under a moment what is done, and all values",
        score=f"{best.mean:.1f}",
        note=f"mean return of 100 test episodes; {other.name} {other.mean:.2f}",
    )
    return draw_sheet(heading, [_row(played, actions, net) for played in rows], height=150)


def _row(played: Played, actions: Sequence[str], net: nn.Module) -> Row:
    moments = played.told.moments
    times = np.unique(np.linspace(0, len(moments) - 1, SHOWN).round().astype(int))
    gained = np.cumsum([moment.reward for moment in moments])
    tiles = []
    for time in times:
        moment = moments[time]
        lines = [f"step {time + 1}: {actions[moment.action]}", f"so far {gained[time]:g}"]
        lines += _lines(values(net, moment.seen)[0], actions)
        tiles.append(Tile(_coloured(moment), lines, INK if moment.reward >= 0 else FAINT))
    return Row(tiles, f"{played.name}\n{gained[-1]:g}")


def _lines(value_A: Tensor, actions: Sequence[str]) -> list[str]:
    return [f"{name} {value:.2f}" for name, value in zip(actions, value_A.tolist(), strict=True)]


def _coloured(moment: Moment) -> Image.Image:
    screen = screen_of(moment)
    rgb = np.repeat(screen[..., None], 3, -1)
    for value, colour in COLOURS.items():
        rgb[screen == value] = colour
    return Image.fromarray(rgb)


def screen_of(moment: Moment) -> Array:
    """Return what was seen last as a grey picture; numbers become a row of bright squares."""
    seen = moment.seen[0, -1].numpy()
    if seen.ndim == 1:
        size = np.abs(seen).max() or 1.0
        seen = (127.5 + 127.5 * seen / size)[None] if seen.dtype != np.uint8 else seen[None]
        seen = np.repeat(seen, seen.shape[1], 0)
    return seen.astype(np.uint8)


def save_gif(moments: Sequence[Moment], path: Path) -> None:
    """Write an episode as an animated file."""
    frames = [np.kron(screen_of(moment), np.ones((ZOOM, ZOOM), np.uint8)) for moment in moments]
    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(path, save_all=True, append_images=rest, duration=FRAME_MS, loop=0)


def answer(raw: Path, game: Game, net: nn.Module, stack: int) -> dict[str, Any]:
    """Return the best action for a screen or an observation in a file, or play an episode."""
    if raw.suffix.lower() != ".json":
        return _best(net, torch.from_numpy(_frames(raw, game, stack))[None], game)
    asked = read_request(raw, ALLOWED, seed=int, observation=list)
    if "seed" in asked:
        told = play(game, greedy(net), stack, int(asked["seed"]))
        path = raw.with_suffix(".gif")
        save_gif(told.moments, path)
        return {"return": round(told.mean, 4), "steps": len(told.moments), "played": str(path)}
    seen: Array = np.asarray(asked["observation"], game.dtype)
    if seen.shape != game.shape:
        raise refused(raw, f"an observation of {list(seen.shape)}", f"{list(game.shape)} numbers")
    return _best(net, torch.from_numpy(np.stack([seen] * stack))[None], game)


def _best(net: nn.Module, seen: Tensor, game: Game) -> dict[str, Any]:
    value_A = values(net, seen)[0]
    said = {name: round(value, 4) for name, value in zip(game.names, value_A.tolist(), strict=True)}
    return {"action": game.names[int(value_A.argmax())], "values": said}


def _frames(raw: Path, game: Game, stack: int) -> Array:
    """Return the last frames in a picture file as observations; one is taken as all of them."""
    if len(game.shape) != 2:
        raise refused(raw, "a picture", f"JSON, {ALLOWED}")
    open_picture(raw)  # refuses what is no picture
    size = game.shape[1], game.shape[0]
    with Image.open(raw) as file:
        shown = [frame.convert("L") for frame in ImageSequence.Iterator(file)][-stack:]
    seen = [np.asarray(frame.resize(size, Image.Resampling.NEAREST)) for frame in shown]
    return np.stack([seen[0]] * (stack - len(seen)) + seen)
