"""BLEU by hand, on sentences short enough to count on fingers."""

from __future__ import annotations

import math

import pytest

from trainers.scores.bleu import bleu


def words(text: str) -> list[str]:
    return text.split()


def test_a_reference_itself_scores_one() -> None:
    said = words("a red disc above a small blue square")
    assert bleu([said], [[words("something else"), said]]) == [1.0] * 4


def test_repeated_words_count_as_often_as_in_the_reference() -> None:
    # The example of the paper: "the" stands twice in the reference, so 2 of 7.
    said = words("the the the the the the the")
    good = [words("the cat is on the mat"), words("there is a cat on the mat")]
    assert bleu([said], [good])[0] == pytest.approx(2 / 7)


def test_runs_of_words_by_hand() -> None:
    said, good = words("the cat sat on the mat"), [words("the cat is on the mat")]
    one, two, three, four = bleu([said], [good])
    assert one == pytest.approx(5 / 6)
    assert two == pytest.approx(math.sqrt(5 / 6 * 3 / 5))  # the cat, on the, the mat
    assert three == pytest.approx((5 / 6 * 3 / 5 * 1 / 4) ** (1 / 3))  # on the mat
    assert four == 0.0


def test_short_answers_pay_for_their_brevity() -> None:
    said, good = words("the cat"), [words("the cat is here")]
    assert bleu([said], [good])[0] == pytest.approx(math.exp(1 - 4 / 2))
    # Of references as near, the shorter one counts; none is longer here.
    assert bleu([words("the cat is")], [[words("the cat is here"), words("the cat")]])[0] == 1.0


def test_a_corpus_adds_counts_before_it_divides() -> None:
    said = [words("a b"), words("c d e f g h")]
    good = [[words("a b")], [words("x x x x x x")]]
    assert bleu(said, good)[0] == pytest.approx(2 / 8)


def test_nothing_said_is_worth_nothing_and_bad_calls_are_refused() -> None:
    assert bleu([[]], [[words("a b")]]) == [0.0] * 4
    with pytest.raises(ValueError, match="1 sentences for 2 references"):
        bleu([["a"]], [[["a"]], [["b"]]])
    with pytest.raises(ValueError, match="one or more each"):
        bleu([["a"]], [[]])
