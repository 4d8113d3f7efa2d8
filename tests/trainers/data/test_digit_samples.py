"""The fixed split of the bundled digits and the drawing of minibatches."""

from __future__ import annotations

import pytest
import torch

from dlplatform.errors import UsageError
from trainers.data.digits import load_digits, stratified
from trainers.data.sampling import draw


def test_sizes_and_values() -> None:
    parts = load_digits()
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 1257,
        "val": 180,
        "test": 360,
    }
    images = parts["train"].images_NCHW[:, 0]
    assert images.shape[1:] == (28, 28) and images.dtype == torch.uint8
    assert images.max() == 255 and images.min() == 0


def test_split_is_disjoint_and_whole() -> None:
    labels = torch.arange(10).repeat(30)
    parts = stratified(labels, [60, 30])
    assert [len(part) for part in parts] == [60, 30, 210]
    assert torch.cat(parts).sort().values.equal(torch.arange(300))


def test_split_is_stratified() -> None:
    parts = load_digits()
    whole = sum(part.labels.bincount(minlength=10) for part in parts.values())
    for part in parts.values():
        expected = whole * len(part) / 1797
        assert (part.labels.bincount(minlength=10) - expected).abs().max() <= 1.5


def test_split_never_changes() -> None:
    labels = load_digits()["test"].labels
    torch.manual_seed(1)
    load_digits.cache_clear()
    assert load_digits()["test"].labels.equal(labels)
    assert labels[:12].tolist() == [3, 1, 5, 6, 4, 9, 7, 0, 2, 8, 3, 1]


def test_images_match_scikit_learn() -> None:
    bundled = pytest.importorskip("sklearn.datasets").load_digits()
    small = torch.from_numpy(bundled.images).float()[:, None] / 16
    big = torch.nn.functional.interpolate(small, size=(28, 28), mode="bilinear")[:, 0]
    ours = torch.cat([part.images_NCHW[:, 0] for part in load_digits().values()])
    assert (ours.double().sum((1, 2)).sort().values / 255).allclose(
        big.double().sum((1, 2)).sort().values, atol=1.0
    )


def test_epoch_holds_no_sample_twice() -> None:
    epoch = [draw(0, number, 16, 1257) for number in range(1257 // 16)]
    seen = torch.cat(epoch)
    assert len(seen.unique()) == len(seen) == 1248
    assert not draw(0, 78, 16, 1257).equal(draw(0, 0, 16, 1257))


def test_draw_depends_on_seed_and_number_only() -> None:
    first = [draw(3, number, 8, 40) for number in (0, 7, 100)]
    again = [draw(3, number, 8, 40) for number in (100, 7, 0)][::-1]
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert not draw(4, 0, 8, 40).equal(first[0])


def test_batch_larger_than_the_set_is_refused() -> None:
    with pytest.raises(UsageError, match=r"task\.batch_size=41 .* allowed: 1 to 40"):
        draw(0, 0, 41, 40)
