"""zoo/textgen: memory decides what comes next; the particle follows the sound before it."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
import torch
from learning import trained
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from dlplatform.errors import UsageError
from trainers.data.corpus import LEAST, LINE, corpus
from trainers.data.text import read_text
from trainers.nets.sequence import CELLS, Next, chooser, generate, truncated_loss
from trainers.pictures.writing import legible, name
from trainers.scores.language import bigram_entropy, foretold, unigram_entropy
from trainers.synth.korean import HELD_OUT, NOUNS, has_final, particle, romanised, sentences
from trainers.zoo.textgen import TextGenerator


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_the_particle_follows_the_final_consonant_of_unicode() -> None:
    assert particle("나") == "는" and particle("책") == "은"
    assert [has_final(c) for c in "가각히힣a"] == [False, True, False, True, False]
    for noun in (*NOUNS, *HELD_OUT):  # the decomposition of Unicode says the same
        assert (len(unicodedata.normalize("NFD", noun[-1])) == 3) == (particle(noun) == "은")
    assert len(NOUNS) == len(set(NOUNS)) == 30 and not set(NOUNS) & set(HELD_OUT)


def test_sentences_are_made_by_rule_from_their_seed() -> None:
    text = sentences(3, 300)
    assert text == sentences(3, 300) != sentences(4, 300)
    for line in text.splitlines():
        words = line.removesuffix(".").split(" ")
        if words[0] in ("어제", "지금", "내일"):
            assert (words.pop(0) == "내일") == (words[-1] == "것이다")
        noun = words[0][:-1]
        assert noun in NOUNS and words[0][-1] == particle(noun)
    held = sentences(3, 50, held_out=True)
    assert any(noun in held for noun in HELD_OUT)
    assert not any(f"{noun}{particle(noun)} " in held for noun in NOUNS if len(noun) > 1)


def test_text_is_romanised_for_a_font_without_hangul() -> None:
    assert romanised("나는 책은 닭 힣") == "naneun chaekeun dak hit"
    assert legible("나 é\n") == "na U+00E9 U+000A "
    assert name("는") == "neun  U+B294" and name("x") == "'x'" and name("\n") == "U+000A"


@pytest.mark.parametrize("cell", list(CELLS))
def test_the_state_goes_on_but_its_gradient_stops_at_a_segment(cell: str) -> None:
    torch.manual_seed(0)
    net = Next(nn.Embedding(5, 6), cell, 6, 5)
    text = torch.randint(5, (2, 9))

    def criterion(y_BTV: torch.Tensor, truth_BT: torch.Tensor) -> torch.Tensor:
        return cross_entropy(y_BTV.flatten(0, 1), truth_BT.flatten())

    whole, cut = (truncated_loss(net, text, length, criterion) for length in (8, 3))
    assert torch.allclose(whole, cut)  # the same memory, so the same predictions
    assert torch.allclose(whole, criterion(net(text[:, :-1])[0], text[:, 1:]))
    grads = [torch.autograd.grad(loss, net.cells.weight_hh_l0)[0] for loss in (whole, cut)]
    assert not torch.allclose(*grads)
    # By hand: each segment on its own, from the state the one before left behind.
    state, total = None, 0.0
    for begin, end in ((0, 3), (3, 6), (6, 8)):
        y_BTV, state = net(text[:, begin:end], state)
        total = total + criterion(y_BTV, text[:, begin + 1 : end + 1]) * (end - begin) / 8
        with torch.no_grad():
            _, state = net(text[:, :end])
    assert torch.allclose(torch.autograd.grad(total, net.cells.weight_hh_l0)[0], grads[1])


def test_counting_by_hand() -> None:
    text = torch.tensor([0, 1, 0, 1, 0, 2])
    asked = torch.tensor([[0, 1, 0]])
    often = torch.tensor([4.0, 3.0, 2.0]) / 9
    assert unigram_entropy(text, asked, 3) == pytest.approx(float(-often[[1, 0]].log().mean()))
    after_0, after_1 = torch.tensor([0.1, 2.1, 1.1]) / 3.3, torch.tensor([2.1, 0.1, 0.1]) / 2.3
    pair = -(after_0[1].log() + after_1[0].log()) / 2
    assert bigram_entropy(text, asked, 3) == pytest.approx(float(pair))


def test_a_phrase_is_foretold_where_its_first_character_is_the_likeliest() -> None:
    text = torch.tensor([[7, 1, 2, 7, 1, 3, 1, 2]])
    likeliest = torch.tensor([[1, 0, 0, 0, 0, 9, 0, 0]])
    assert foretold(likeliest, text, [torch.tensor([1, 2])]) == 0.5
    none = foretold(likeliest, text, [torch.tensor([8, 8])])
    assert none != none


def test_generation_feeds_back_what_it_chose() -> None:
    torch.manual_seed(0)
    net = Next(nn.Embedding(9, 8), "gru", 8, 9)
    start = torch.tensor([[5, 6]])
    said = generate(net, start, 5, chooser(0, 0.0, special=4))
    text = start
    for _ in range(5):
        best = 4 + net(text)[0][:, -1, 4:].argmax(1, keepdim=True)
        text = torch.cat([text, best], 1)
    assert torch.equal(said, text[:, 2:]) and int(said.min()) >= 4
    drawn = [generate(net, start, 20, chooser(seed, 2.0, special=4)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_minibatches_come_by_number_and_held_out_text_meets() -> None:
    task = TextGenerator(seed=1, batch_size=3)
    tokens_BT = task.batch("train", 4)
    assert tokens_BT.shape == (3, 71)
    assert torch.equal(tokens_BT, TextGenerator(seed=1, batch_size=3).batch("train", 4))
    assert not torch.equal(tokens_BT, task.batch("train", 5))
    lines_BT = torch.cat(list(task.batches("val")))
    assert lines_BT.shape[1] == LINE + 1
    assert torch.equal(lines_BT[:-1, -1], lines_BT[1:, 0])
    with pytest.raises(UsageError, match="split=all is not known - allowed: train, val, test"):
        list(task.batches("all"))


@pytest.mark.parametrize("jamo", [False, True])
def test_syllables_or_letters(jamo: bool) -> None:
    book = corpus("", jamo, 0)
    assert len(book.encode("책은")) == (6 if jamo else 2)
    assert ("책" in book.vocabulary.words) != jamo
    # Letters are known of any noun, syllables only of those that were read.
    assert (3 in book.encode("".join(HELD_OUT)).tolist()) != jamo


def test_any_text_file_is_read_and_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("It was the best of times, it was the worst of times. " * 60)
    task = TextGenerator(data=str(path), units=8, batch_size=2, length=5)
    models = task.models()
    assert float(task.loss(models, task.batch("train", 0)).detach()) > 0
    with torch.no_grad():
        scores = task.score(models, task.batches("test"))
    assert set(scores) == {"gain", "perplexity", "accuracy"}  # no particles in English
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("It was\n")
    answer = task.predict(models, prompt)
    assert answer["text"].startswith("It was") and len(answer["text"]) == 6 + 5
    assert len(answer["next"]) == 3
    assert task.picture(models).width > 500


def test_files_that_cannot_be_read_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("né".encode("latin-1"))
    with pytest.raises(UsageError, match="is not UTF-8 at byte 1"):
        read_text(tmp_path / "latin")
    with pytest.raises(UsageError, match=r"cannot be read .No such file"):
        read_text(tmp_path / "none")
    (tmp_path / "short").write_text("short")
    with pytest.raises(UsageError, match=f"has 5 characters - allowed: {LEAST} or more"):
        TextGenerator(data=str(tmp_path / "short")).models()
    (tmp_path / "text").write_text("ab" * LEAST)
    with pytest.raises(UsageError, match="is 60000 characters - allowed: up to"):
        TextGenerator(data=str(tmp_path / "text"), segments=100, truncation=600).batch("train", 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("cell", "tcn"), ("units", 0), ("layers", 0), ("truncation", 0), ("segments", 0),
     ("length", 0), ("temperature", -1.0), ("batch_size", 0)],
)  # fmt: skip
def test_settings_that_cannot_work(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"task.{field}={value} cannot work - allowed: "):
        TextGenerator(**{field: value})


def test_a_sine_is_continued_by_the_same_network() -> None:
    def waves(count: int, seed: int) -> torch.Tensor:
        random = torch.Generator().manual_seed(seed)
        pace, lap = torch.rand(2, count, 1, 1, generator=random)
        return torch.sin(torch.arange(41)[None, :, None] * (0.2 + 0.4 * pace) + 6.3 * lap)

    torch.manual_seed(0)
    net = Next(nn.Linear(1, 24), "gru", 24, 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(150):
        optimizer.zero_grad()
        truncated_loss(net, waves(16, step), 20, mse_loss).backward()
        optimizer.step()
    held = waves(64, 10_000)
    with torch.no_grad():
        error = float(mse_loss(net(held[:, :-1])[0][:, 5:], held[:, 6:]))
    same_again = float(mse_loss(held[:, 5:-1], held[:, 6:]))
    assert error < 0.1 * same_again


@pytest.mark.slow
def test_it_learns_particles_and_remembers_how_a_sentence_began() -> None:
    task = TextGenerator(seed=0, minibatches=500)
    models = trained(task, 500, clip=5.0)
    with torch.no_grad():
        scores = task.score(models, task.batches("test"))
    base = task.baselines()
    assert scores["gain"] >= 2.0 and scores["gain"] > base["bigram"] + 4 > base["unigram"]
    assert base["untrained"] < 1.1 and scores["particle"] >= 0.95
    assert 0 <= scores["held_out"] <= 1, "of nouns it never saw it is told, not promised"
    answer = task.go_on(models, "나")
    assert next(iter(answer["next"])) == "는" and answer["text"].startswith("나는")
    assert next(iter(task.go_on(models, "책")["next"])) == "은"

    def future(prompt: str) -> float:
        chance = models["net"](task.corpus.encode("\n" + prompt)[None])[0][0, -1].softmax(0)
        return float(chance[task.corpus.encode("잘")[0]])

    with torch.no_grad():  # how it began says how it goes on, and so does the order of it
        assert future("내일 나는 ") > 0.3 > 0.1 > future("어제 나는 ")
        assert future("내일 나는 ") > 2 * future("나일 내는 ")
    assert task.picture(models).width > 500
