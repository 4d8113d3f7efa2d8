"""zoo/nic: sentences follow from pictures, the CNN waits, the search finds likelier sentences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from learning import trained
from PIL import Image
from safetensors.torch import save_file

from dlplatform.errors import UsageError
from trainers.blocks.vocabulary import END, PAD, START, UNKNOWN, Vocabulary
from trainers.data.captions import load_captions, words_of
from trainers.data.pictured import TENTHS, scene
from trainers.nets.caption import Agreement, Looker, Teller, beam_search, caption_loss
from trainers.synth.scenes import COLOURS, Look, draw_scene
from trainers.zoo.nic import ImageCaption


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def teller(init: str = "input", words: int = 9) -> Teller:
    torch.manual_seed(3)
    return Teller(6, words, 8, init)


def test_the_vocabulary_knows_its_ends_and_what_it_does_not_know() -> None:
    said = [("a", "red", "disc"), ("a", "blue", "disc"), ("a", "rare", "disc")]
    words = Vocabulary.of(said, least=2)
    assert words.words == ("<pad>", "<s>", "</s>", "<unk>", "a", "disc")
    assert words.encode(("a", "rare", "disc")) == [START, 4, UNKNOWN, 5, END]
    assert words.decode([START, 4, 5, END, 4]) == ["a", "disc"] and len(words) == 6


@pytest.mark.parametrize("init", ["input", "state"])
def test_the_picture_is_seen_once_before_the_first_word(init: str) -> None:
    net = teller(init)
    one, other = torch.randn(2, 1, 6)
    tokens = torch.tensor([[START, 4, 5]])
    assert not torch.allclose(net(one, tokens), net(other, tokens))
    # From the same state on, nothing else of the picture comes in.
    state = net.begin(one)
    first, state = net.step(tokens[:, :1], state)
    rest, _ = net.step(tokens[:, 1:], state)
    assert torch.allclose(torch.cat([first, rest], 1), net(one, tokens), atol=1e-6)
    if init == "state":
        assert torch.equal(state[0].new_tensor(state[0].shape), torch.tensor([1.0, 1.0, 8.0]))
        assert float(net.begin(one)[0].detach().abs().max()) <= 1


def test_padding_costs_nothing() -> None:
    net, features = teller(), torch.randn(2, 6)
    short = torch.tensor([[[START, 4, END]], [[START, 5, END]]])
    padded = torch.nn.functional.pad(short, (0, 3), value=PAD)
    assert torch.allclose(caption_loss(net, features, short), caption_loss(net, features, padded))
    logits = net(features, short[:, 0, :-1]).log_softmax(2)
    by_hand = -logits.gather(2, short[:, 0, 1:, None]).sum() / 2
    assert torch.allclose(caption_loss(net, features, short), by_hand)
    # Longer sentences do not weigh on others: two batches are the mean of each.
    longer = torch.tensor([[[START, 4, 6, 7, 5, END]]])
    both = caption_loss(net, features, torch.cat([padded[:1], longer]))
    apart = [caption_loss(net, features[n : n + 1], t) for n, t in enumerate((short[:1], longer))]
    assert torch.allclose(both, sum(apart) / 2)


def test_greedy_takes_the_likeliest_word_and_beams_find_likelier_sentences() -> None:
    net, features = teller(words=12), torch.randn(8, 6)
    net.out.weight.data *= 4
    tokens, sure = beam_search(net, features, beams=1, length=6)
    logits = net(features, tokens[:, :-1])
    open_ = ((tokens[:, :-1] == END).cumsum(1) == 0) & (tokens[:, 1:] != PAD)
    logits[..., PAD] = -torch.inf
    assert torch.equal(logits.argmax(2)[open_], tokens[:, 1:][open_])
    totals = [beam_search(net, features, beams, length=6)[1] for beams in (1, 3, 8)]
    assert torch.equal(totals[0], sure)
    assert totals[0].mean() <= totals[1].mean() <= totals[2].mean()
    # Its sum is the log-probability of the words it returned.
    found, said = beam_search(net, features, 3, length=6)
    chance = net(features, found[:, :-1]).log_softmax(2).gather(2, found[:, 1:, None])[..., 0]
    assert torch.allclose((chance * (found[:, 1:] != PAD)).sum(1), said, atol=1e-4)


def test_pairs_of_the_test_never_come_in_training() -> None:
    def pairs(split: str) -> set[frozenset[str]]:
        found = set()
        for seed in range(150):
            words = " ".join(scene(seed, split, 16)[1][0]).replace("small ", "")
            middle = next(w for w in (" above ", " left of ") if w in words)
            found.add(frozenset(words.split(middle)))
        return found

    train, val, test = (pairs(split) for split in ("train", "val", "test"))
    assert not train & test and not train & val and not val & test and len(test) > 10
    assert sorted(t for tenths in TENTHS.values() for t in tenths) == list(range(10))


def test_minibatches_come_by_number() -> None:
    x_BCHW, tokens_BRT, number_B = ImageCaption(seed=1, batch_size=4).batch("train", 5)
    assert x_BCHW.shape == (4, 3, 32, 32) and number_B.tolist() == [5] * 4
    again = ImageCaption(seed=1, batch_size=4).batch("train", 5)
    assert torch.equal(x_BCHW, again[0]) and torch.equal(tokens_BRT, again[1])
    assert not torch.equal(x_BCHW, ImageCaption(seed=2, batch_size=4).batch("train", 5)[0])
    assert tokens_BRT.shape == (4, 1, 12) and bool((tokens_BRT[:, 0, 0] == START).all())
    held = next(iter(ImageCaption().batches("val")))
    assert held[1].shape == (100, 1, 12)
    with pytest.raises(UsageError, match="split=all is not known - allowed: train, val, test"):
        next(iter(ImageCaption().batches("all")))


def test_the_cnn_is_frozen_first_and_then_gets_the_gradient_of_the_whole() -> None:
    task = ImageCaption(batch_size=4, width=4, features=8, units=8, frozen=0.5, minibatches=10)
    torch.manual_seed(0)
    models = task.models()
    assert list(task.groups(models)) == ["rnn", "cnn"]
    cnn = list(models["cnn"].parameters())
    for number, trains in ((4, False), (5, True)):
        batch = task.batch("train", number)
        told = {}
        for group, loss in task.losses(models, batch):
            models["cnn"].zero_grad()
            loss.backward()
            told[group] = float(loss.detach())
        assert told["rnn"] > 0 and told["cnn"] == 0
        got = [p.grad.clone() for p in cnn]
        models["cnn"].zero_grad()
        task.loss(models, batch).backward()
        for mine, whole in zip(got, cnn, strict=True):
            expected = whole.grad if trains else torch.zeros_like(mine)
            assert torch.allclose(mine, expected, atol=1e-6)
        assert any(float(p.grad.abs().max()) > 0 for p in cnn)


def folder(path: Path, count: int = 4) -> Path:
    (path / "annotations").mkdir(parents=True)
    for part in ("train2017", "val2017"):
        (path / part).mkdir()
        images, said = [], []
        for number in range(count):
            name = f"{number:012d}.jpg"
            Image.new("RGB", (40, 30), (60 * number, 90, 200)).save(path / part / name)
            images.append({"id": number, "file_name": name})
            said += [{"image_id": number, "caption": c} for c in ("A dog runs.", "The dog's run")]
        told = json.dumps({"images": images, "annotations": said})
        (path / "annotations" / f"captions_{part}.json").write_text(told)
    return path


def test_a_coco_folder_is_read_and_trained_on(tmp_path: Path) -> None:
    parts = load_captions(folder(tmp_path / "coco"))
    assert {split: len(part) for split, part in parts.items()} == {"train": 4, "val": 2, "test": 2}
    assert parts["train"][0].captions == (("a", "dog", "runs"), ("the", "dog's", "run"))
    assert words_of("Two -- 'MEN', 3 hats.") == ("two", "men", "3", "hats")
    task = ImageCaption(
        data=str(tmp_path / "coco"), batch_size=2, width=4, features=8, units=8, image=16
    )
    models = task.models()
    assert float(task.loss(models, task.batch("train", 0)).detach()) > 0
    scores = task.score(models, task.batches("test"))
    assert set(scores) == {"bleu1", "bleu2", "bleu3", "bleu4", "exact", "shuffled", "loss"}


def test_folders_that_are_not_cocos_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder - allowed: a folder with annotations/"):
        load_captions(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"has no annotations/captions_train\*\.json"):
        load_captions(tmp_path / "empty")
    broken = folder(tmp_path / "broken")
    (broken / "annotations" / "captions_train2017.json").write_text('{"images": []}')
    with pytest.raises(UsageError, match=r"cannot be read .KeyError: 'annotations'"):
        load_captions(broken)
    lost = folder(tmp_path / "lost")
    (lost / "train2017" / "000000000001.jpg").unlink()
    with pytest.raises(UsageError, match="caption of image 1 has no picture"):
        load_captions(lost)
    with pytest.raises(UsageError, match="has 1 captioned pictures in val - allowed: 2 or more"):
        load_captions(folder(tmp_path / "few", count=1))


def test_weights_for_the_cnn_are_taken_or_refused(tmp_path: Path) -> None:
    small = {"width": 4, "features": 8, "units": 8, "image": 16}
    torch.manual_seed(5)
    saved = Looker(16, 4, 8).state_dict()
    save_file(saved, tmp_path / "cnn.safetensors")
    taken = ImageCaption(weights=str(tmp_path / "cnn.safetensors"), **small).models()["cnn"]
    assert all(torch.equal(saved[name], value) for name, value in taken.state_dict().items())
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    save_file({"net.0.weight": torch.zeros(1)}, tmp_path / "shape.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name, what in {
        "none": "cannot be read",
        "text": "cannot be read",
        "other": "has no weights of this network - allowed: names such as net.0.weight",
        "shape": r"has net.0.weight of shape \(1,\) - allowed: \(4, 3, 3, 3\)",
    }.items():
        with pytest.raises(UsageError, match=what):
            ImageCaption(weights=str(tmp_path / f"{name}.safetensors"), **small).models()


@pytest.mark.parametrize(
    ("name", "value"),
    [("image", 8), ("width", 0), ("init", "both"), ("dropout", 1.0), ("frozen", 1.5),
     ("cnn_lr", 0.0), ("beams", 0), ("lr", 0.0)],
)  # fmt: skip
def test_settings_that_cannot_work(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"task.{name}={value} cannot work - allowed: "):
        ImageCaption(**{name: value})


def test_photo_and_text_are_fused_to_tell_whether_they_agree() -> None:
    """Neither the picture nor the word alone says it: every pair is as often true as not."""
    look = Look(16, least=1, most=1, small=(0.5, 0.6), large=(0.6, 0.8))
    random = torch.Generator().manual_seed(0)
    shown = [draw_scene(seed, look) for seed in range(1200)]
    x_BCHW = torch.stack([torch.from_numpy(s.image_HWC).movedim(2, 0) for s in shown]) / 255
    truth = torch.tensor([list(COLOURS).index(s.things[0].colour) for s in shown])
    agree = torch.randint(2, (len(shown),), generator=random)
    other = (truth + torch.randint(1, len(COLOURS), (len(shown),), generator=random)) % len(COLOURS)
    word = torch.where(agree == 1, truth, other)[:, None]
    torch.manual_seed(0)
    net = Agreement(16, width=8, features=32, words=len(COLOURS))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(300):
        part = slice(32 * (step % 31), 32 * (step % 31) + 32)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x_BCHW[part], word[part]), agree[part]).backward()
        optimizer.step()
    held = slice(1000, None)
    with torch.no_grad():
        said = net(x_BCHW[held], word[held]).argmax(1)
        swapped = net(x_BCHW[held].roll(1, 0), word[held]).argmax(1)
    assert float((said == agree[held]).double().mean()) > 0.85
    assert float((swapped == agree[held]).double().mean()) < 0.7


@pytest.mark.slow
def test_it_learns_to_say_what_it_sees() -> None:
    task = ImageCaption(seed=0, minibatches=260, frozen=0.0)
    models = trained(task, 260, clip=5.0)
    with torch.no_grad():
        scores = task.score(models, task.batches("val"))
        swapped = [(x.roll(1, 0), said, number) for x, said, number in task.batches("val")]
        blind = task.score(models, swapped)
    # Without the picture a sentence costs some 7.6 nats: log(2 * 2 * 6 * 6 * 3 * 3 * 2), less what
    # the pairs that are held out exclude.
    assert scores["loss"] < 7.0 < 7.5 < blind["loss"]
    assert scores["bleu4"] > 0.25 and blind["exact"] <= 0.1 and scores["shuffled"] <= 0.1
    assert blind["bleu4"] < scores["bleu4"]
    assert task.picture(models).width > 500
