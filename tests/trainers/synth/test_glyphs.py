"""Glyphs: the same seed writes the same characters, and hands differ less than characters."""

from __future__ import annotations

import torch

from trainers.synth.glyphs import Hand, draw_glyphs


def test_glyphs_are_a_pure_function_of_the_seed() -> None:
    x_NHW, labels = draw_glyphs(1, 6, 5)
    again_NHW, _ = draw_glyphs(1, 6, 5)
    assert torch.equal(x_NHW, again_NHW) and not torch.equal(x_NHW, draw_glyphs(2, 6, 5)[0])
    assert x_NHW.shape == (30, 16, 16) and labels.bincount().tolist() == [5] * 6
    assert float(x_NHW.min()) >= 0 and float(x_NHW.max()) <= 1
    assert draw_glyphs(1, 2, 1, side=28)[0].shape == (2, 28, 28)


def test_a_character_stays_the_same_with_more_classes_beside_it() -> None:
    still = Hand(jitter=0, affine=0, shift=0, noise=0)
    few_NHW, many_NHW = (draw_glyphs(3, count, 1, hand=still)[0] for count in (4, 9))
    assert torch.equal(few_NHW, many_NHW[:4])
    assert torch.equal(*draw_glyphs(3, 1, 2, hand=still)[0])


def test_samples_of_one_character_are_alike() -> None:
    x_NHW, labels = draw_glyphs(0, 12, 6)
    apart = torch.cdist(x_NHW.flatten(1), x_NHW.flatten(1))
    same = labels[:, None] == labels[None]
    assert float(apart[same].sum() / (same.sum() - 72)) < 0.8 * float(apart[~same].mean())
