"""speech/digits: what is spoken, heard and decoded, and that the network learns to hear it."""

from __future__ import annotations

import itertools
import math
import struct
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dlplatform.errors import UsageError
from trainers.blocks.alone import train_alone
from trainers.blocks.logmel import log_mel, mask, mel_filters
from trainers.data.speech import load_speech
from trainers.data.wav import read_wav, resample
from trainers.nets.ctc import Recogniser, beam_search, greedy, padded
from trainers.scores.words import edits, word_scores
from trainers.speech.digits import SpokenDigits
from trainers.synth.speech import RATE, speak, speaker, utterances

SMALL = SpokenDigits(utterances=120)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def write_wav(path: Path, samples_S: NDArray[np.float32], rate: int) -> None:
    """Write mono samples within -1 and 1 as 16-bit PCM."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(samples_S, -1, 1) * 32767).round().astype("<i2").tobytes())


def test_recordings_are_a_pure_function_of_seed_and_place() -> None:
    some = utterances(3, 0, 2, 4)
    utterances.cache_clear()
    again = utterances(3, 0, 2, 6)
    for one, same in zip(some, again, strict=False):
        assert np.array_equal(one.samples_S, same.samples_S) and one.digits == same.digits
    assert not np.array_equal(some[0].samples_S, utterances(4, 0, 2, 4)[0].samples_S)
    assert all(1 <= len(one.digits) <= 5 and np.abs(one.samples_S).max() <= 1 for one in some)
    assert all(0.2 < len(one.samples_S) / RATE / len(one.digits) < 1.5 for one in some)


def test_voices_differ_in_pitch_formants_and_rate() -> None:
    voices = [speaker(0, number) for number in range(30)]
    pitches = [voice.pitch for voice in voices]
    assert min(pitches) < 110 and max(pitches) > 220
    assert np.ptp([voice.formants for voice in voices]) > 0.15
    fast, slow = (replace(voices[0], rate=rate) for rate in (1.25, 0.8))
    short, long = (speak((1, 2), voice, np.random.default_rng(0)) for voice in (fast, slow))
    assert len(short) < len(long)


def test_the_test_voices_never_spoke_in_training() -> None:
    heard = {
        split: {one.speaker for one in SMALL.spoken(split)} for split in ("train", "val", "test")
    }
    assert all(not a & b for a, b in itertools.combinations(heard.values(), 2))
    assert len(heard["test"]) >= 10


def test_minibatches_come_by_number() -> None:
    first, again = SMALL.batch("train", 9), SpokenDigits(utterances=120).batch("train", 9)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    x_BTF, frames_B, digits_BL, number_B = first
    assert x_BTF.shape == (16, int(frames_B.max()), 32) and int(digits_BL.max()) <= 10
    assert digits_BL.shape[1] == int(number_B.max())
    lengths = [SMALL.batch("train", number)[1].double().mean() for number in range(7)]
    assert lengths == sorted(lengths) and SMALL.batch("train", 7)[1].double().mean() < lengths[-1]
    assert sum(len(b[0]) for b in SMALL.batches("test")) == 20


def test_a_tone_lights_the_band_of_its_pitch() -> None:
    filters_NF = mel_filters(RATE, 32)
    assert filters_NF.shape == (129, 32) and bool((filters_NF.sum(0) > 0).all())
    t_S = torch.arange(RATE) / RATE
    sound_S = torch.cat([torch.sin(2 * math.pi * 440 * t_S), torch.sin(2 * math.pi * 2500 * t_S)])
    x_TF = log_mel(sound_S, RATE, 32)
    assert x_TF.shape == (201, 32)
    low, high = (int(filters_NF[round(hertz / RATE * 256)].argmax()) for hertz in (440, 2500))
    assert float(x_TF[50, low]) > 0.5 > float(x_TF[150, low])
    assert float(x_TF[150, high]) > 0.5 > float(x_TF[50, high])
    assert torch.allclose(x_TF.mean(0), torch.zeros(32), atol=1e-4)
    louder_TF = log_mel(0.1 * sound_S, RATE, 32)
    assert torch.allclose(louder_TF, x_TF, atol=0.02)


def test_masks_blank_a_run_of_bands_and_frames() -> None:
    x_TF = torch.ones(60, 32)
    shown_TF = mask(x_TF, 5)
    assert torch.equal(shown_TF, mask(x_TF, 5)) and bool((x_TF == 1).all())
    counts = [int((mask(x_TF, seed) == 0).sum()) for seed in range(20)]
    assert max(counts) > 0 and max(counts) <= 4 * 60 + 8 * 32


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_padding_behind_a_recording_changes_nothing(cell: str) -> None:
    torch.manual_seed(0)
    net = Recogniser(32, 11, cell, units=8)
    rows = [torch.randn(length, 32) for length in (37, 80)]
    logp_BTK, steps_B = net(*padded(rows))
    assert steps_B.tolist() == [5, 10]
    alone_1TK, _ = net(rows[0][None], torch.tensor([37]))
    assert torch.allclose(logp_BTK[0, :5], alone_1TK[0], atol=1e-5)
    # Both directions: the first step knows the end, and the last step the start.
    for changed, looked in ((36, 0), (0, 4)):
        other_TF = rows[0].clone()
        other_TF[changed] += 3
        other_1TK, _ = net(other_TF[None], torch.tensor([37]))
        assert not torch.equal(other_1TK[0, looked], alone_1TK[0, looked])


def test_the_loss_sums_over_all_alignments() -> None:
    """Graves et al. (2006), equation 8, by brute force over all paths of four steps."""
    torch.manual_seed(1)
    logp_TK = torch.randn(4, 11).log_softmax(1)
    task = SpokenDigits()

    class Fixed(torch.nn.Module):
        def forward(self, x_BTF: torch.Tensor, frames_B: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return logp_TK[None], frames_B

    batch = (torch.zeros(1, 4, 32), torch.tensor([4]), torch.tensor([[3, 3]]), torch.tensor([2]))
    total = sum(
        math.exp(sum(float(logp_TK[t, k]) for t, k in enumerate(path)))
        for path in itertools.product((0, 3), repeat=4)
        if [k for k, _ in itertools.groupby(path) if k] == [3, 3]
    )
    assert float(task.loss({"net": Fixed()}, batch)) == pytest.approx(
        -math.log(total) / 2, rel=1e-4
    )


def test_greedy_takes_the_likeliest_path_and_a_beam_the_likeliest_string() -> None:
    path = torch.tensor([0, 4, 4, 0, 4, 2, 0])
    assert greedy(torch.nn.functional.one_hot(path, 11).float()) == [4, 4, 2]
    # The likeliest path is all blank (0.36); the string 1 has 0.64 in three paths.
    logp_TK = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()
    assert greedy(logp_TK) == [] and beam_search(logp_TK, 4) == [1]


def test_a_wide_beam_finds_the_best_of_all_strings() -> None:
    torch.manual_seed(2)
    logp_TK = (1.5 * torch.randn(5, 3)).log_softmax(1)
    totals: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(3), repeat=5):
        string = tuple(k for k, _ in itertools.groupby(path) if k)
        p = math.exp(sum(float(logp_TK[t, k]) for t, k in enumerate(path)))
        totals[string] = totals.get(string, 0.0) + p
    assert tuple(beam_search(logp_TK, 100)) == max(totals, key=lambda s: totals[s])


def test_word_errors_are_counted_as_by_hand() -> None:
    assert edits([1, 2, 3], [1, 3]) == 1 and edits([1, 2], [2, 1, 2]) == 1
    assert edits([], [5, 5]) == 2 and edits([4, 5], [5, 4]) == 2
    scores = word_scores([([1, 2, 3], [1, 2, 3]), ([4, 5], [4]), ([6], [7, 8])])
    assert scores["wer"] == pytest.approx(3 / 6) and scores["word_accuracy"] == pytest.approx(0.5)
    assert scores["string_accuracy"] == pytest.approx(1 / 3)


def _write(path: Path, samples_SC: np.ndarray, width: int, rate: int) -> Path:
    values = np.round(samples_SC * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    raw = (values + 128 if width == 1 else values).astype("<i8").reshape(-1, 1).view(np.uint8)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples_SC.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(raw[:, :width].tobytes())
    return path


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("rate", [8000, 44100])
def test_wav_files_of_any_width_rate_and_channels_sound_alike(
    tmp_path: Path, width: int, rate: int
) -> None:
    t_S = np.arange(rate // 2) / rate
    left_S, right_S = 0.6 * np.sin(2 * np.pi * 300 * t_S), 0.2 * np.sin(2 * np.pi * 300 * t_S)
    path = _write(tmp_path / "a.wav", np.stack([left_S, right_S], 1), width, rate)
    heard_S = read_wav(path, RATE)
    wanted_S = 0.4 * np.sin(2 * np.pi * 300 * np.arange(RATE // 2) / RATE)
    assert heard_S.dtype == np.float32 and len(heard_S) == RATE // 2
    assert np.abs(heard_S - wanted_S)[200:-200].max() < 0.01


def test_an_extensible_header_is_read_and_floats_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write_wav(path, np.linspace(-1, 1, 800, dtype=np.float32), RATE)
    plain = path.read_bytes()
    head = struct.pack("<HHIIHH", 0xFFFE, 1, RATE, 2 * RATE, 2, 16)
    head += struct.pack("<HHI", 22, 16, 4) + b"\x01\x00" + bytes(14)
    size = struct.pack("<I", len(plain) - 8 + 24)
    whole = plain[:4] + size + plain[8:16] + struct.pack("<I", 40) + head + plain[36:]
    path.write_bytes(whole)
    assert np.allclose(read_wav(path, RATE), np.linspace(-1, 1, 800), atol=1e-3)
    path.write_bytes(plain[:20] + b"\x03\x00" + plain[22:])
    with pytest.raises(UsageError, match=r"cannot be read as wav .* - allowed: whole PCM"):
        read_wav(path, RATE)


def test_resampling_keeps_a_tone_and_drops_what_cannot_be_kept() -> None:
    t_S = np.arange(16000) / 16000
    kept_S = resample(np.sin(2 * np.pi * 1000 * t_S), 16000, 8000)
    assert np.allclose(kept_S, np.sin(2 * np.pi * 1000 * t_S[::2]), atol=1e-6)
    assert np.abs(resample(np.sin(2 * np.pi * 6000 * t_S), 16000, 8000)).max() < 1e-6


@pytest.mark.parametrize(
    ("change", "said"),
    [(lambda raw: b"", "cannot be read as wav"), (lambda raw: b"RIFX" + raw[4:], "cannot be read"),
     (lambda raw: raw[:-100], "holds 1500 bytes of sound"), (lambda raw: raw[:44], "holds 0 bytes"),
     (lambda raw: raw[:24] + b"\x10\0\0\0" + raw[28:], "16 Hz"),
     (lambda raw: raw[:30], "read as wav")],
)  # fmt: skip
def test_malformed_wav_files_end_in_one_line(tmp_path: Path, change, said: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "a.wav"
    write_wav(path, np.zeros(800, np.float32), RATE)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UsageError, match=said) as caught:
        read_wav(path, RATE)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def _folder(root: Path, table: bool) -> Path:
    lines = []
    for n, one in enumerate(utterances(0, 0, 5, 10)):
        folder = root / one.speaker.replace(" ", "_")
        folder.mkdir(exist_ok=True)
        write_wav(folder / f"{n}.wav", one.samples_S, RATE)
        text = " ".join(map(str, one.digits))
        if table:
            lines.append(f"{folder.name}/{n}.wav\t{text}\t{one.speaker}\n")
        else:
            (folder / f"{n}.txt").write_text(text)
    if table:
        (root / "transcripts.tsv").write_text("".join(lines))
    return root


@pytest.mark.parametrize("table", [True, False])
def test_a_folder_of_recordings_is_split_by_speaker(tmp_path: Path, table: bool) -> None:
    parts = load_speech(str(_folder(tmp_path, table)))
    assert {name: len(part) for name, part in parts.items()} == {"train": 6, "val": 2, "test": 2}
    speakers = [{one.speaker for one in part} for part in parts.values()]
    assert all(not a & b for a, b in itertools.combinations(speakers, 2))
    texts = {one.digits for part in parts.values() for one in part}
    assert texts == {one.digits for one in utterances(0, 0, 5, 10)}
    task = SpokenDigits(data=str(tmp_path), batch_size=4)
    assert task.batch("train", 0)[0].shape[0] == 4
    torch.manual_seed(0)
    assert 0 <= task.score(task.models(), task.batches("test"))["string_accuracy"] <= 1


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [("0.txt", "four eleven", "'eleven' is no digit - allowed"), ("0.txt", " ", "says no digit"),
     ("transcripts.tsv", "0.wav 4\n", "line 1: '0.wav 4' does not name"),
     ("transcripts.tsv", "none.wav\t4\n", "line 1: .* does not name"),
     ("1.wav", "", "cannot be read as wav")],
)  # fmt: skip
def test_malformed_folders_end_in_one_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    for n in range(4):
        write_wav(tmp_path / f"{n}.wav", np.zeros(4000, np.float32), RATE)
        (tmp_path / f"{n}.txt").write_text("oh two seven" if n else "47")
    assert load_speech(str(tmp_path))["test"][0].digits in ((4, 7), (0, 2, 7))
    load_speech.cache_clear()
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=said):
        load_speech(str(tmp_path))


def test_folders_without_recordings_and_orphans(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has 0 to train"):
        load_speech(str(tmp_path))
    write_wav(tmp_path / "a.wav", np.zeros(800, np.float32), RATE)
    load_speech.cache_clear()
    with pytest.raises(UsageError, match=r"a\.wav has no a\.txt beside it"):
        load_speech(str(tmp_path))
    with pytest.raises(UsageError, match="is not a folder"):
        load_speech(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("net", "rnn"), ("units", 0), ("bands", 2), ("utterances", 10), ("beam", 0), ("warmup", 1.0)],
)
def test_settings_that_cannot_work(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"task.{name}={value} cannot work - allowed: "):
        SpokenDigits(**{name: value})  # type: ignore[arg-type]


def test_the_size_is_as_said() -> None:
    net = SpokenDigits().models()["net"]
    assert sum(p.numel() for p in net.parameters()) == SpokenDigits.parameters


@pytest.mark.slow
def test_it_learns_to_hear_voices_it_has_never_heard(tmp_path: Path) -> None:
    task = SpokenDigits(minibatches=560)  # of 800
    models = train_alone(task)
    with torch.no_grad():
        scores = task.score(models, task.batches("test"))
        followed = replace(task, beam=1).score(models, task.batches("test"))
    base = task.baselines()
    assert scores["word_accuracy"] > 0.5 and scores["word_accuracy"] > base["linear"] + 0.1
    assert base["untrained"] < 0.2 and base["commonest string"] < 0.2
    assert scores["word_accuracy"] == pytest.approx(followed["word_accuracy"], abs=0.05)
    assert task.picture(models).width > 800
    right = 0
    for one in task.spoken("test")[:10]:
        path = tmp_path / "said.wav"
        write_wav(path, resample(one.samples_S.astype(float), RATE, 16000).astype("f"), 16000)
        answer = task.predict(models, path)
        assert 0 <= answer["confidence"] <= 1
        right += answer["digits"] == "".join(map(str, one.digits))
    assert right >= 1
