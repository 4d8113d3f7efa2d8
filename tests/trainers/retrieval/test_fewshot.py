"""retrieval/fewshot: stages by number, shared episodes, folders, and what adaptation brings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from dlplatform.errors import UsageError
from trainers.blocks.maml import Labelled
from trainers.retrieval.agreement import train, train_until_agreement
from trainers.retrieval.compare import course
from trainers.retrieval.fewshot import FewShot
from trainers.synth.glyphs import draw_glyphs

SMALL = {"width": 8, "blocks": 2, "inner_steps": 2, "steps": 3, "batch_size": 20}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def built(task: FewShot) -> dict[str, nn.Module]:
    torch.manual_seed(task.seed)
    return task.models()


def test_the_stage_is_a_pure_function_of_the_number() -> None:
    task = FewShot(minibatches=40, cycles=2, pretrain=0.75)
    assert [task.stage(number) for number in range(40)] == ([1] * 15 + [2] * 5) * 2
    assert {FewShot(pretrain=1.0).stage(number) for number in range(700)} == {1}
    (first,) = task.batch("train", 0)
    support, query = task.batch("train", 15)
    assert first.pictures.shape == (1, 40, 1, 16, 16) and first.labels.shape == (1, 40)
    assert support.pictures.shape == (2, 40, 1, 16, 16) and query.labels.shape == (2, 20)
    again = FewShot(minibatches=40, cycles=2, pretrain=0.75).batch("train", 15)
    assert torch.equal(support.pictures, again[0].pictures)
    assert not torch.equal(support.labels, task.batch("train", 16)[0].labels)


def test_stage_one_sees_the_source_alone_and_held_out_classes_are_never_trained() -> None:
    task = FewShot(minibatches=20, pretrain=0.5)
    train_part, held_out = (task.domains.source()[part] for part in ("train", "val"))
    assert not set(train_part.labels.tolist()) & set(held_out.labels.tolist())
    rows = {tuple(x.flatten().tolist()) for x in train_part.pair()[0]}
    for number in range(20):
        for part in task.batch("train", number):
            assert all(tuple(x.flatten().tolist()) in rows for x in part.pictures.flatten(0, 1))


def test_episodes_may_come_from_the_few_of_the_target_or_both() -> None:
    few = {"support_classes": 6, "query_classes": 4, "pretrain": 0.0}
    seen = {}
    for origin in ("source", "target", "both"):
        task = FewShot(episodes_from=origin, **few)
        support, query = task.batch("train", 0)
        known = task.few(2 * task.shots)
        rows = {tuple(x.flatten().tolist()) for x in known.pair()[0]}
        seen[origin] = [
            {tuple(x.flatten().tolist()) for x in x_NCHW} <= rows for x_NCHW in support.pictures
        ]
        assert len(known) == 100 and support.pictures.shape[1] == 30 and query.labels.shape[1] == 20
    assert seen == {"source": [False] * 2, "target": [True] * 2, "both": [False, True]}


def test_two_workers_on_an_episode_each_are_one_on_both() -> None:
    task = FewShot(pretrain=0.0, **SMALL)
    models = built(task)
    support, query = task.batch("train", 0)
    task.loss(models, (support, query)).backward()  # type: ignore[no-untyped-call]
    whole = [p.grad.clone() for p in models["net"].parameters()]
    models["net"].zero_grad()
    for part in (slice(0, 1), slice(1, 2)):
        share = tuple(Labelled(one.pictures[part], one.labels[part]) for one in (support, query))
        (task.loss(models, share) / 2).backward()  # type: ignore[no-untyped-call]
    for p, expected in zip(models["net"].parameters(), whole, strict=True):
        assert torch.allclose(p.grad, expected, atol=1e-6)


def test_training_and_scoring_leave_the_initialisation_to_the_rules() -> None:
    task = FewShot(pretrain=0.0, **SMALL)
    models = built(task)
    before = [p.clone() for p in models["net"].parameters()]
    task.loss(models, task.batch("train", 0)).backward()  # type: ignore[no-untyped-call]
    task.score(models, task.batches("val"))
    for p, stored in zip(models["net"].parameters(), before, strict=True):
        assert torch.equal(p, stored) and p.grad is not None


def test_learnt_step_sizes_and_first_order_are_settings() -> None:
    task = FewShot(pretrain=0.0, meta_sgd=True, **SMALL)
    models = built(task)
    task.loss(models, task.batch("train", 0)).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in models["sizes"].parameters())
    assert {len(list(task.groups(models)["main"]))} == {2 * len(list(models["net"].parameters()))}
    for settings in ({"second_order": False}, {"adapt": "head"}, {"class_shared": True}):
        other = FewShot(pretrain=0.0, **SMALL, **settings)
        assert float(other.loss(built(other), other.batch("train", 0)).detach()) > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("metric", "far"), ("adapt", "some"), ("episodes_from", "moon"), ("pretrain", 1.1),
     ("alpha", 0.0), ("side", 4), ("width", 20), ("blocks", 5), ("cycles", 0), ("episodes", 0),
     ("steps", 0), ("inner_steps", 0), ("nearest", 0), ("batch_size", 9), ("criterion", 8),
     ("label_unit", "kilos"), ("shots", 1), ("query_classes", 1)],
)  # fmt: skip
def test_settings_that_cannot_work(name: str, value: float | str) -> None:
    with pytest.raises(UsageError, match=f"task.{name}={value} cannot work - allowed: "):
        FewShot(**{name: value})


def test_the_agreement_loop_ends_when_source_and_target_agree() -> None:
    task = FewShot(minibatches=2, pretrain=0.5, episodes=1, **SMALL)
    models = built(task)
    easy = train_until_agreement(task, models, similarity=0.01)
    assert len(easy) == 1 and easy[0].similarity == pytest.approx(
        1 - abs(easy[0].rho1 - easy[0].rho2) / max(easy[0].rho1, easy[0].rho2)
    )
    assert len(train_until_agreement(task, models, similarity=1.0, most=2)) == 2
    for settings in ({"similarity": 1.1}, {"most": 0}):
        with pytest.raises(UsageError, match="cannot work"):
            train_until_agreement(task, models, **settings)


def test_folders_are_trained_on_and_searched(tmp_path: Path) -> None:
    x_NHW, labels = draw_glyphs(5, 26, 16)
    for number, (x_HW, label) in enumerate(zip(x_NHW, labels.tolist(), strict=True)):
        folder = "source" if label < 18 else "target"
        path = tmp_path / folder / f"alphabet{label % 2}" / f"c{label:02}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((x_HW * 255).byte().numpy()).save(path)
    task = FewShot(data=str(tmp_path), shots=2, criterion=6, **SMALL)
    models = built(task)
    for number in (0, task.minibatches - 1):
        assert float(task.loss(models, task.batch("train", number)).detach()) > 0
    assert 0 < task.score(models, task.batches("test"))["map_r"] < 1
    asked = next((tmp_path / "target").rglob("*.png"))
    answer = task.predict(models, asked)
    assert len(answer["nearest"]) == 6 and Path(answer["nearest"][0]["image"]).is_file()
    assert answer["class"].startswith("alphabet")
    everywhere = replace(task, database=str(tmp_path / "target"))
    assert everywhere.predict(models, asked)["nearest"][0]["image"] == str(asked)
    with pytest.raises(UsageError, match="is not a folder"):
        replace(task, data=str(tmp_path / "none")).batch("train", 0)


def test_feedback_in_a_file_changes_what_is_found(tmp_path: Path) -> None:
    task = FewShot(**SMALL)
    models = built(task)
    test = task.domains.target()["test"]
    Image.fromarray((test.images_NCHW[3, 0] * 255).byte().numpy()).save(tmp_path / "query.png")
    asked = tmp_path / "feedback.json"

    def found(file: Path) -> list[dict[str, object]]:
        with torch.inference_mode():  # as dlp predict has it
            return task.predict(models, file)["nearest"]  # type: ignore[no-any-return]

    before = found(tmp_path / "query.png")
    flags = [number < 3 for number in range(task.nearest)]
    asked.write_text(json.dumps({"picture": "query.png", "relevant": flags}))
    after = found(asked)
    assert len(after) == task.nearest and after != before
    assert found(tmp_path / "query.png") == before, "the saved run stays"
    for said, wrong in (
        ({"picture": "query.png"}, "holds no relevant - allowed: "),
        ({"picture": "query.png", "relevant": [1, 0]}, r"holds relevant=\[1, 0\] - allowed: "),
        ({"picture": "query.png", "relevant": []}, r"holds relevant=\[\] - allowed: "),
        ({"picture": "query.png", "relevant": [True]}, "1 flags for 6 results - allowed: "),
        ({"picture": "none.png", "relevant": flags}, "none.png cannot be read"),
        ({"pictures": "query.png"}, "feedback.json holds .* - allowed: "),
    ):
        asked.write_text(json.dumps(said))
        with pytest.raises(UsageError, match=wrong):
            found(asked)


@pytest.mark.slow
def test_a_few_labelled_pictures_make_the_search_better(tmp_path: Path) -> None:
    task = FewShot(seed=0, minibatches=60, episodes=1, alpha=0.2)
    models = built(task)
    draw = next(task.batches("val"))
    start = course(models["net"], draw, task.deployed, None, (0, task.steps))
    train(task, models, range(task.minibatches))
    scores = task.score(models, task.batches("test"))
    base = task.baselines()
    print(scores, base)
    assert scores["gain"] > 0.05 and scores["early"] > scores["unadapted"]
    assert set(base) == {
        *("raw_pixels", "hog", "dense_sift", "random_net", "random_net_adapted"),
        *("cosine_classifier", "unadapted_metric", "fine_tuned_early", "fine_tuned"),
    }
    assert all(0.1 < value < 1 for value in base.values()), "all are better than chance"
    assert base["fine_tuned"] > base["unadapted_metric"] + 0.05
    assert scores["map_r"] > max(base["random_net"], base["unadapted_metric"])
    assert 0 < scores["rho1"] < scores["rho2"] < 1, "same-class pictures are nearer than others"
    end = course(models["net"], draw, task.deployed, None, (0, task.steps))
    assert end[task.steps].support_loss < end[0].support_loss
    assert end[task.steps].rest.loss < end[0].rest.loss, "the few are not learnt by heart"
    assert end[task.steps].rest.loss < start[task.steps].rest.loss
    assert task.picture(models).width > 500
    test = task.domains.target()["test"]
    right = 0
    for place in range(4):
        path = tmp_path / f"{place}.png"
        picture = (test.images_NCHW[place, 0] * 255).byte().numpy()
        Image.fromarray(picture).resize((64, 64)).save(path)
        answer = task.predict(models, path)
        distances = [found["distance"] for found in answer["nearest"]]
        assert len(distances) == task.nearest and distances == sorted(distances)
        right += answer["class"] == test.names[int(test.labels[place])]
    assert right >= 1
