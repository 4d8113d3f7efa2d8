"""road/deformable: what can be asked of it, where it starts, and that it learns.

Shape legend: B batch, H height, W width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from learning import trained
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from dlplatform.checkpoint import Checkpoint, weights_of
from dlplatform.errors import UsageError
from dlplatform.flat import FlatGroup
from dlplatform.task import Models
from trainers.nets.deformable import deformables, offset_parameters, set_offsets
from trainers.nets.pyramids import DSPP
from trainers.nets.resnet import ResNet, Shape
from trainers.road.choices import CONTEXTS
from trainers.road.deformable import DeformableRoad
from trainers.road.starts import load_encoder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def built(**settings: object) -> tuple[DeformableRoad, Models]:
    task = DeformableRoad(**settings)  # type: ignore[arg-type]
    models = task.models()
    task.begin(models)
    return task, models


def small(task: DeformableRoad, number: int = 0) -> tuple[Tensor, Tensor]:
    """Return a corner of two training pictures."""
    x_B3HW, labels_BHW = task.batch("train", number)
    return x_B3HW[..., :32, :64], labels_BHW[..., :32, :64]


def saved(models: Models, folder: Path) -> str:
    Checkpoint(position=1, weights=weights_of(models)).save(folder)
    return str(folder)


def test_its_size_is_as_it_says() -> None:
    _, models = built()
    assert sum(p.numel() for p in models["net"].parameters()) == DeformableRoad.parameters


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("module", "dsp", "dsp; closest: dspp"),
        ("host", "resnet", "resnet; closest: espnet"),
        ("validity", "gated", "gated; closest: gate"),
        ("offsets", "whole", "whole"),
        ("offsets", "tuned", "tuned"),
        ("budget", -1.0, "-1.0"),
        ("offset_rate", 0.0, "0.0"),
        ("batch_size", 0, "0"),
    ],
)
def test_settings_that_cannot_work(name: str, value: object, said: str) -> None:
    with pytest.raises(UsageError, match=f"task.{name}={said} cannot work - allowed: "):
        DeformableRoad(**{name: value})  # type: ignore[arg-type]


def test_batches_are_a_pure_function_of_seed_and_number() -> None:
    task = DeformableRoad(batch_size=2)
    x_B3HW, labels_BHW = task.batch("train", 7)
    again_B3HW, same_BHW = DeformableRoad(batch_size=2).batch("train", 7)
    assert torch.equal(x_B3HW, again_B3HW) and torch.equal(labels_BHW, same_BHW)
    assert not torch.equal(x_B3HW, task.batch("train", 8)[0])


@pytest.mark.parametrize("module", CONTEXTS)
def test_every_module_takes_a_step(module: str) -> None:
    task, models = built(module=module, batch_size=2)
    before = {name: p.detach().clone() for name, p in models["net"].named_parameters()}
    optimizer = task.optimizer("main", task.groups(models)["main"])
    models["net"].train()
    torch.as_tensor(task.loss(models, small(task))).backward()
    optimizer.step()
    moved = [
        name for name, p in models["net"].named_parameters() if not torch.equal(p, before[name])
    ]
    assert any("context" in name for name in moved) and any("encoder" in name for name in moved)


def test_the_guide_is_a_term_of_the_loss() -> None:
    task, models = built(validity="gate+guide", batch_size=2)
    for layer in deformables(models["net"]):
        nn.init.normal_(layer.offset.bias)
    terms = task.loss(models, small(task))
    assert isinstance(terms, dict) and set(terms) == {"pixels", "guide"}
    assert float(terms["guide"].detach()) > 0


def test_it_says_what_the_paths_think_of_each_other() -> None:
    task, models = built()
    batches = [small(task)]
    assert {"mIoU", "offset_ratio", "offset_disagreement", "validity_2", "won_1"} <= set(
        task.score(models, batches)
    )
    plain, nets = built(module="conv")
    assert "offset_ratio" not in plain.score(nets, batches)


def test_a_shared_kernel_is_once_in_the_flat_buffer() -> None:
    task, models = built(module="dspp_ext")
    group = FlatGroup("main", task.groups(models)["main"])
    for module in (m for m in models["net"].modules() if isinstance(m, DSPP)):
        for kernel in (module.shared.offset.weight, module.shared.feature.weight):
            assert sum(p is kernel for p in group.parameters) == 1


def test_tuned_offsets_are_in_no_group_and_never_move(tmp_path: Path) -> None:
    _, models = built(module="dspp_ext")
    for layer in deformables(models["net"]):
        nn.init.normal_(layer.offset.weight, std=0.1)
    settings = {"module": "dspp_ext", "start": saved(models, tmp_path), "batch_size": 2}
    task, tuned = built(offsets="tuned", **settings)
    still = {p: p.detach().clone() for p in offset_parameters(tuned["net"])}
    chosen = list(task.groups(tuned)["main"])
    assert len(still) == 4 and not still.keys() & set(chosen)
    assert len(list(built(**settings)[0].groups(tuned)["main"])) == len(chosen) + 4
    group = FlatGroup("main", chosen)
    optimizer = task.optimizer("main", group.parameters)
    statistics = tuned["net"].encoder[0][0][1].running_mean.clone()
    before = group.weight.clone()
    for number in range(2):
        group.zero_grad()
        tuned["net"].train()
        torch.as_tensor(task.loss(tuned, small(task, number))).backward()
        optimizer.step()
    assert all(p.grad is None and torch.equal(p, was) for p, was in still.items())
    assert not torch.equal(group.weight, before)
    assert not torch.equal(tuned["net"].encoder[0][0][1].running_mean, statistics)


def test_a_run_starts_from_the_weights_of_another(tmp_path: Path) -> None:
    _, models = built()
    _, started = built(start=saved(models, tmp_path))
    for name, tensor in weights_of(models).items():
        assert torch.equal(weights_of(started)[name], tensor)
    gone = DeformableRoad(start=str(tmp_path / "nowhere")).models()
    assert weights_of(gone).keys() == weights_of(models).keys(), "it is read by new runs alone"
    with pytest.raises(UsageError, match="holds no checkpoint"):
        built(start=str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="use the task settings the checkpoint was trained with"):
        built(start=str(tmp_path), module="conv")


def test_an_encoder_is_read_by_names_or_by_order(tmp_path: Path) -> None:
    wanted, encoder = (ResNet(Shape(18, width=0.1, output_stride=16), 5) for _ in range(2))
    encoder.head = nn.Identity()
    renamed = {
        f"theirs.{n}.{name.rpartition('.')[2]}": tensor
        for n, (name, tensor) in enumerate(wanted.state_dict().items())
    }
    for path, state in (("a.safetensors", wanted.state_dict()), ("b.pth", renamed)):
        for p in encoder.parameters():
            nn.init.zeros_(p)
        save = save_file if path.endswith("safetensors") else torch.save
        save({key: value.contiguous() for key, value in state.items()}, tmp_path / path)
        load_encoder(encoder, str(tmp_path / path))
        for name, tensor in encoder.state_dict().items():
            if "num_batches" not in name:
                assert torch.equal(tensor, wanted.state_dict()[name])


def resnet_50_as_in_torchvision() -> dict[str, Tensor]:
    """Return a state dictionary with the names, the order and the shapes of torchvision's file."""
    state: dict[str, Tensor] = {}

    def layer(conv: str, norm: str, out: int, channels: int, side: int) -> None:
        state[f"{conv}.weight"] = torch.randn(out, channels, side, side)
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}.{name}"] = torch.rand(out)
        state[f"{norm}.num_batches_tracked"] = torch.tensor(1)

    layer("conv1", "bn1", 64, 3, 7)
    before = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for block in range(blocks):
            home, out = f"layer{stage}.{block}", 4 * width
            layer(f"{home}.conv1", f"{home}.bn1", width, before, 1)
            layer(f"{home}.conv2", f"{home}.bn2", width, width, 3)
            layer(f"{home}.conv3", f"{home}.bn3", out, width, 1)
            if not block:
                layer(f"{home}.downsample.0", f"{home}.downsample.1", out, before, 1)
            before = out
    return state | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}


@pytest.mark.slow
def test_the_weights_of_torchvision_are_taken_as_they_come(tmp_path: Path) -> None:
    theirs, path = resnet_50_as_in_torchvision(), str(tmp_path / "resnet50.pth")
    torch.save(theirs, path)
    _, models = built(host="deeplab", encoder=path)
    encoder = models["net"].encoder
    first, last = encoder.layers.layer1[0], encoder.layers.layer4[-1]
    for own, name in (
        (encoder.layers.stem[0].weight, "conv1.weight"),
        (first.residual[0].weight, "layer1.0.conv1.weight"),
        (first.projection[0].weight, "layer1.0.downsample.0.weight"),
        (first.projection[1].running_var, "layer1.0.downsample.1.running_var"),
        (last.residual[-1].bias, "layer4.2.bn3.bias"),
    ):
        assert torch.equal(own, theirs[name]), name


def test_an_encoder_file_that_cannot_be_right_is_one_line(tmp_path: Path) -> None:
    encoder = nn.Conv2d(3, 4, 1)
    (tmp_path / "text.pth").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "few.pth")
    torch.save({"a": torch.zeros(1), "b": torch.zeros(4)}, tmp_path / "shape.pth")
    (tmp_path / "text.safetensors").write_text("hello")
    for name, wrong in {
        "none.pth": "cannot be read",
        "text.pth": "cannot be read",
        "text.safetensors": "cannot be read",
        "list.pth": "no state dictionary",
        "few.pth": "holds 1 tensors - allowed: at least 2",
        "shape.pth": r"has \[1\] where weight is - allowed: \[4, 3, 1, 1\]",
    }.items():
        with pytest.raises(UsageError, match=wrong) as caught:
            load_encoder(encoder, str(tmp_path / name))
        assert str(caught.value).startswith("task.encoder=") and "\n" not in str(caught.value)


def test_it_answers_for_a_file_with_masks_of_lanes_and_free_space(tmp_path: Path) -> None:
    task, models = built()
    path = tmp_path / "road.png"
    picture_HW3 = np.random.RandomState(0).randint(0, 255, (48, 80, 3)).astype(np.uint8)
    Image.fromarray(picture_HW3).save(path)
    answer = task.predict(models, path)
    classes = np.array(Image.open(answer["classes"]))
    assert classes.shape == (48, 80) and classes.max() < 6
    for name, wanted in (("lane", (3,)), ("free", (2, 3))):
        assert np.array_equal(np.array(Image.open(answer[name])) > 0, np.isin(classes, wanted))
    grey = tmp_path / "note.png"
    grey.write_text("no picture")
    with pytest.raises(UsageError):
        task.predict(models, grey)


@pytest.mark.slow
def test_it_learns_and_whole_offsets_cost_little(tmp_path: Path) -> None:
    task = DeformableRoad(batch_size=4, minibatches=160)
    models = trained(task, task.minibatches)
    test = list(task.batches("test"))
    real = task.score(models, test)["mIoU"]
    base = task.baselines()
    assert real > 0.6 and real > base["linear"] + 0.1 and base["untrained"] < 0.2
    set_offsets(models["net"], "integer")
    whole = task.score(models, test)["mIoU"]
    start = saved(models, tmp_path)
    more = DeformableRoad(offsets="tuned", start=start, batch_size=4, minibatches=40, lr=0.01)
    tuned = trained(more, more.minibatches)
    assert more.score(tuned, test)["mIoU"] > max(whole, real - 0.02) - 0.005
    assert task.picture(models).width > 500
