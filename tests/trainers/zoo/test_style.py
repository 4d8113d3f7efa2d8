"""zoo/style: what the losses measure, what is frozen, and that unseen pictures are repainted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learning import trained
from PIL import Image
from safetensors.torch import save_file

from dlplatform.errors import UsageError
from trainers.data.photos import studio
from trainers.nets.style import (
    NOISE,
    Patches,
    Transform,
    Vgg,
    gram,
    optimise,
    palette,
    recoloured,
    sliced_distance,
    total_variation,
)
from trainers.synth.paintings import painting
from trainers.zoo.style import StyleTransfer


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def small(**settings: object) -> StyleTransfer:
    return StyleTransfer(**{"image": 32, "width": 2, "residual": 1, "loss_width": 4, **settings})


def test_gram_and_variation_by_hand() -> None:
    features = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [0.0, -1.0]]]])
    assert gram(features).tolist() == [[[30 / 8, -2 / 8], [-2 / 8, 2 / 8]]]
    shuffled = features.flatten(2)[:, :, [2, 0, 3, 1]].unflatten(2, (2, 2))
    assert torch.equal(gram(shuffled), gram(features))  # where something is does not count
    assert float(total_variation(features[:, :1])) == pytest.approx(4 + 1)
    assert float(total_variation(torch.ones(1, 3, 4, 4))) == 0


def test_colours_alone_have_the_mean_and_the_covariance_of_the_paintings() -> None:
    luck = torch.Generator().manual_seed(0)
    some_BCHW = torch.rand(2, 3, 8, 8, generator=luck)
    mixed_BCHW = 0.3 + 0.2 * torch.rand(2, 3, 8, 8, generator=luck).cumsum(1)
    aim_C1, aim_CC = palette(mixed_BCHW)
    for one_CHW in recoloured(some_BCHW, mixed_BCHW):
        mean_C1, root_CC = palette(one_CHW[None])
        assert torch.allclose(mean_C1, aim_C1, atol=0.02)
        assert torch.allclose(root_CC, aim_CC, atol=0.02)


def test_even_ground_gets_strokes_from_noise_that_is_always_the_same() -> None:
    grey_BCHW = torch.full((1, 3, 16, NOISE + 9), 0.5)
    torch.manual_seed(0)
    net = Transform(2, 1).eval()
    with torch.no_grad():
        y_BCHW = net(grey_BCHW)
        assert float(y_BCHW.std()) > 0.01 and torch.equal(y_BCHW, net(grey_BCHW))
    assert torch.equal(net.noise_11HW, Transform(4, 2).noise_11HW)


def test_sliced_distance_by_hand() -> None:
    one = torch.ones(1, 1, 1, 1)
    aim = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]], [[[4.0, 5.0], [6.0, 7.0]]]])
    # Four places against eight: each rank is compared with the middle of two, here 1, 3, 5 and 7.
    y = torch.tensor([[[[5.0, 1.0], [7.0, 3.0]]], [[[5.0, 1.0], [5.0, 6.0]]]])
    expected = [0.0, (2.0**2 + 1.0**2) / 4 / 6.0]  # the variance of the aim is 6
    assert sliced_distance(y, aim, one).tolist() == pytest.approx(expected, abs=1e-5)


def test_patches_tell_strokes_from_the_same_pixels_elsewhere() -> None:
    paintings = studio("", 64, 1, 0).style_BCHW
    judge = Patches(paintings, 8).eval()
    torch.manual_seed(0)
    flat_CN = paintings[0].flatten(1)
    shuffled = flat_CN[:, torch.randperm(64 * 64)].view(1, 3, 64, 64)
    content, style = judge(paintings, paintings)
    assert float(style) == pytest.approx(0, abs=1e-6) and float(content) == 0
    content, style = judge(shuffled, paintings)
    assert float(style) > 0.05 and float(content) > 0.1
    one, seven = (torch.randn(4, 3, size, size) for size in (1, 7))
    assert float(sliced_distance(shuffled, paintings, one)) == pytest.approx(0, abs=1e-6)
    assert float(sliced_distance(shuffled, paintings, seven)) > 0.001
    # Light and contrast of a picture are not its content.
    assert float(judge(paintings * 0.5 + 0.2, paintings)[0]) < 0.1
    # In training each minibatch has its own filters, the same for all workers.
    answers = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        answers.append(float(judge.train()(shuffled, paintings)[1]))
    assert answers[0] == answers[1] != answers[2]
    assert float(judge.eval()(shuffled, paintings)[1]) == float(style)


def test_a_vgg_judges_by_the_mean_gram_matrix_of_all_paintings(tmp_path: Path) -> None:
    save_file({"features.0.weight": torch.randn(4, 3, 3, 3)}, tmp_path / "vgg")
    paintings = studio("", 32, 3, 0).style_BCHW
    one = Vgg(paintings[:1], 4, tmp_path / "vgg")
    content, style = one(paintings[:1], paintings[:1])
    assert float(style) == pytest.approx(0, abs=1e-6) and float(content) == 0
    assert float(one(paintings[1:2], paintings[:1])[0]) > 0.1
    several = Vgg(paintings, 4, tmp_path / "vgg")
    grams = [gram(several.look(paintings[n : n + 1])[2])[0] for n in range(3)]
    assert torch.allclose(several.gram2, torch.stack(grams).mean(0), rtol=1e-4)


@pytest.mark.parametrize("trained", [False, True])
def test_the_judge_is_frozen_always_the_same_and_in_no_group(tmp_path: Path, trained: bool) -> None:
    save_file({"features.0.weight": torch.randn(4, 3, 3, 3)}, tmp_path / "vgg")
    task = small(weights=str(tmp_path / "vgg") if trained else "")
    models, others = task.models(), task.models()
    frozen = models["judge"]
    assert not any(p.requires_grad for p in frozen.parameters())
    values = [*frozen.parameters(), *frozen.buffers()]
    assert values and all(
        map(torch.equal, values, [*others["judge"].parameters(), *others["judge"].buffers()])
    )
    grouped = {id(p) for parameters in task.groups(models).values() for p in parameters}
    assert grouped == {id(p) for p in models["net"].parameters()}
    before = [one.clone() for one in values]
    terms = task.loss(models, task.batch("train", 0))
    assert set(terms) == {"content", "style", "smooth"}
    sum(terms.values()).backward()
    assert all(p.grad is None for p in frozen.parameters())
    assert all(p.grad is not None for p in models["net"].parameters())
    assert all(map(torch.equal, before, values))


def test_pictures_of_any_size_and_strength() -> None:
    torch.manual_seed(0)
    net = Transform(2, 1).eval()
    for height, width in ((32, 32), (33, 50), (17, 19)):
        y_BCHW = net(torch.rand(1, 3, height, width))
        assert y_BCHW.shape == (1, 3, height, width)
        assert float(y_BCHW.detach().min()) >= 0 and float(y_BCHW.detach().max()) <= 1
    x_BCHW = torch.rand(1, 3, 32, 32)
    models = small().models()
    none, half, whole = (small(strength=s).repaint(models, x_BCHW) for s in (0.0, 0.5, 1.0))
    assert torch.allclose(none, x_BCHW) and torch.allclose(whole, models["net"](x_BCHW))
    assert torch.allclose(half, (x_BCHW + whole) / 2, atol=1e-6)


def test_pixel_by_pixel_a_picture_comes_nearer_to_the_style() -> None:
    torch.manual_seed(0)
    paintings = studio("", 32, 1, 0).style_BCHW
    judge = Patches(paintings, 8)
    x_BCHW = studio("", 32, 1, 0).held_out("test")[:1]
    start_BCHW = recoloured(x_BCHW, paintings)
    y_BCHW = optimise(judge, x_BCHW, start_BCHW, style_weight=4.0, steps=40)
    judge.eval()
    content, style = judge(y_BCHW, x_BCHW)
    assert float(style) < 0.5 * float(judge(start_BCHW, x_BCHW)[1])
    assert float(content) < float(judge(paintings, x_BCHW)[0])
    assert not y_BCHW.requires_grad and float(y_BCHW.min()) >= 0 and float(y_BCHW.max()) <= 1


def test_minibatches_come_by_number_and_held_out_photos_stay_held_out() -> None:
    task = small(seed=1)
    x_BCHW = task.batch("train", 3)
    assert x_BCHW.shape == (4, 3, 32, 32) and torch.equal(x_BCHW, small(seed=1).batch("train", 3))
    assert not torch.equal(x_BCHW, task.batch("train", 4))
    test, other = (torch.cat(list(small(seed=s).batches("test"))) for s in (1, 2))
    assert torch.equal(test, other) and len(test) == 32
    assert not torch.equal(test[:16], torch.cat(list(task.batches("val"))))
    with pytest.raises(UsageError, match="split=train is not held out - allowed: val, test"):
        list(task.batches("train"))


def test_a_painting_is_drawn_from_its_seed_in_its_palette() -> None:
    one = painting(5)
    assert one.shape == (64, 64, 3) and (one == painting(5)).all() and (one != painting(6)).any()
    red, _, blue = one.reshape(-1, 3).astype(float).mean(0)
    assert blue > red + 20


def pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (50, 40), (20 * number, 90, 120)).save(folder / f"{number:02}.png")


def test_folders_of_content_and_style(tmp_path: Path) -> None:
    pictures(tmp_path / "content", 12)
    with pytest.raises(
        UsageError, match="has 0 pictures in style - allowed: a folder with content"
    ):
        small(data=str(tmp_path)).models()
    pictures(tmp_path / "style", 2)
    task = small(data=str(tmp_path), batch_size=3)
    assert task.studio.style_BCHW.shape == (2, 3, 32, 32)
    parts = task.studio.files
    assert {split: len(paths) for split, paths in parts.items()} == {
        "test": 2,
        "val": 2,
        "train": 8,
    }
    assert task.batch("train", 1).shape == (3, 3, 32, 32)
    with pytest.raises(UsageError, match="has 0 pictures in content"):
        small(data=str(tmp_path / "none")).batch("train", 0)


def test_weights_of_a_vgg_are_taken(tmp_path: Path) -> None:
    weight = torch.full((4, 3, 3, 3), 0.5)
    save_file({"features.0.weight": weight, "classifier.0.bias": torch.ones(4)}, tmp_path / "vgg")
    judge = small(weights=str(tmp_path / "vgg")).models()["judge"]
    assert torch.equal(judge.features[0].weight, weight)
    # The places of torchvision's VGG-16: conv1_1 to conv4_3, ReLU 1_2, 2_2, 3_3 and 4_3 judged.
    convolutions = [
        n for n, layer in enumerate(judge.features) if isinstance(layer, torch.nn.Conv2d)
    ]
    assert convolutions == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21] and judge.judged == [3, 8, 15, 22]


def test_a_users_picture_becomes_a_png_of_its_size(tmp_path: Path) -> None:
    Image.new("RGB", (45, 30), (200, 60, 20)).save(tmp_path / "roof.jpg")
    task = small()
    answer = task.predict(task.models(), tmp_path / "roof.jpg")
    assert answer == {"picture": str(tmp_path / "roof-stylised.png"), "width": 45, "height": 30}
    with Image.open(answer["picture"]) as made:
        assert made.format == "PNG" and made.size == (45, 30)
    Image.new("RGB", (45, 8)).save(tmp_path / "flat.png")
    with pytest.raises(UsageError, match="has 45 x 8 pixels - allowed: 16 or more"):
        task.predict(task.models(), tmp_path / "flat.png")


@pytest.mark.parametrize(
    ("name", "value"),
    [("image", 16), ("width", 0), ("residual", 0), ("loss_width", 0), ("paintings", 0),
     ("style_weight", -1.0), ("smooth_weight", -1.0), ("strength", 2.0)],
)  # fmt: skip
def test_settings_that_cannot_work(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"task.{name}={value} cannot work - allowed: "):
        StyleTransfer(**{name: value})


@pytest.mark.slow
def test_it_learns_to_repaint_pictures_it_never_saw() -> None:
    task = StyleTransfer(seed=0)
    models = trained(task, 100, clip=5.0)  # of 160
    with torch.no_grad():
        scores, base = task.score(models, task.batches("test")), task.baselines()
        less = StyleTransfer(seed=0, strength=0.85).score(models, task.batches("test"))
    assert scores["style"] <= 0.15 and scores["ssim"] >= 0.3
    assert less["style"] <= 0.3 and less["ssim"] > scores["ssim"]  # some of the picture is left
    assert scores["quality"] > max(base.values()) + 0.3
    x_BCHW = task.studio.held_out("test")
    painted, _ = models["judge"](task.studio.style_BCHW[:1].expand_as(x_BCHW), x_BCHW)
    assert scores["content"] < float(painted.mean())
    assert task.picture(models).width > 500
