"""human/sensors: what the simulated body does, the loaders, fusion, the stream, and learning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dlplatform.errors import UsageError
from trainers.blocks.alone import train_alone
from trainers.blocks.stream import Stream, majority, periods
from trainers.data.sensors import WINDOW, cut, load_sensors, read_csv
from trainers.human.sensors import SPLITS, Sensors
from trainers.nets.sensors import MODALITIES, SensorNet, left_out, signals
from trainers.scores.f1 import confusion, f1, macro_f1
from trainers.synth.imu import (
    ACTIVITIES,
    CHANNELS,
    DOWN,
    LIE,
    RATE,
    RUN,
    SIT,
    STAND,
    TURN,
    UP,
    WALK,
    Recording,
    record,
)

HEADER = ",".join(CHANNELS)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def day() -> Recording:
    return record(0, 1, 3)


def _of(recording: Recording, activity: int) -> np.ndarray:
    return recording.samples_SC[recording.activity_S == activity].astype(float)


def test_the_eleven_channels_have_their_names_and_order() -> None:
    assert CHANNELS == ("ax", "ay", "az", "gx", "gy", "gz", "mx", "my", "mz", "alt", "time")
    x_BCT, activity, posture = Sensors().batch("train", 0)
    assert x_BCT.shape == (32, 11, WINDOW) and activity.shape == posture.shape == (32,)
    assert [first for first, _ in MODALITIES.values()] == [0, 3, 6, 9, 10]


def test_recordings_are_a_pure_function_of_seed_and_subject(day: Recording) -> None:
    record.cache_clear()
    assert np.array_equal(day.samples_SC, record(0, 1, 3).samples_SC)
    assert not np.array_equal(day.samples_SC, record(0, 2, 3).samples_SC)
    assert np.bincount(day.activity_S).tolist() == [3 * 8 * RATE] * len(ACTIVITIES)


def test_each_activity_moves_as_it_should(day: Recording) -> None:
    length = {a: np.linalg.norm(_of(day, a)[:, :3], axis=1) for a in range(8)}
    assert all(abs(length[a].mean() - 1) < 0.1 for a in (SIT, STAND, LIE, TURN))
    assert length[STAND].std() < 0.05 < 0.07 < length[WALK].std() < length[RUN].std()
    beats = np.abs(np.fft.rfft(length[WALK][: 8 * RATE] - 1))
    assert 1.5 < np.argmax(beats[8:]) / 8 + 1 < 2.1
    # Gusts come and go: the median of the change is the climb.
    change = {a: _of(day, a)[:, 9].reshape(3, -1, RATE)[:, :, 0] for a in (UP, DOWN, WALK)}
    rise = {a: float(np.median(np.diff(line, axis=1))) for a, line in change.items()}
    assert 0.2 < rise[UP] < 0.4 and -0.4 < rise[DOWN] < -0.2 and abs(rise[WALK]) < 0.1
    spin = {a: np.abs(_of(day, a)[:, 3:6].reshape(3, -1, 3).mean(1)).max() for a in (TURN, STAND)}
    assert spin[TURN] > 0.6 and spin[STAND] < 0.2


def test_only_the_altimeter_tells_stairs_and_only_gyro_and_field_a_turn(day: Recording) -> None:
    walk, up = (np.linalg.norm(_of(day, a)[:, :6].reshape(-1, 2, 3), axis=2) for a in (WALK, UP))
    assert np.allclose(walk.std(0), up.std(0), rtol=0.6)
    stand, turn = (_of(day, a)[: 8 * RATE, :3] for a in (STAND, TURN))
    assert np.allclose(stand.std(0), turn.std(0), atol=0.01)
    field = {a: _of(day, a)[: 8 * RATE, 6:9].std(0).max() for a in (TURN, STAND)}
    assert field[TURN] > 1.5 * field[STAND]


def test_no_subject_is_in_two_splits_and_windows_lie_within_an_activity() -> None:
    task = Sensors()
    people = {split: set(task.windows(split).subjects) for split in SPLITS}
    assert [len(people[split]) for split in ("train", "val", "test")] == [20, 3, 5]
    assert len(set.union(*people.values())) == 28
    samples_SC = np.arange(600, dtype=np.float32)[:, None].repeat(11, 1)
    activity_S = np.repeat([0, -1, 2], [250, 50, 300])
    found = cut([Recording(samples_SC, activity_S, "a", (400,))])
    starts = found.x_NCT[:, 0, 0].tolist()
    assert starts == [0, 64, 400, 464] and found.activity_N.tolist() == [0, 0, 2, 2]


def test_minibatches_come_by_number() -> None:
    first, again = (Sensors(seed=1).batch("train", 5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], Sensors(seed=1).batch("train", 6)[0])
    assert sum(len(b[1]) for b in Sensors(seed=1).batches("test")) == 600


def test_height_enters_as_its_change_and_the_hour_as_a_point_on_a_circle() -> None:
    x_BCT = torch.zeros(1, 11, 4)
    x_BCT[0, 9] = torch.tensor([100.0, 101.0, 103.0, 103.0])
    x_BCT[0, 10] = torch.tensor([0.0, 6.0, 12.0, 24.0])
    made_BCT = signals(x_BCT)
    assert made_BCT.shape == (1, 12, 4) and made_BCT[0, 9].tolist() == [0, 1, 2, 0]
    assert torch.allclose(made_BCT[0, 10], torch.tensor([0.0, 1, 0, 0]), atol=1e-5)
    assert torch.allclose(made_BCT[0, 11], torch.tensor([1.0, 0, -1, 1]), atol=1e-5)


@pytest.mark.parametrize("fusion", ["late", "early"])
def test_both_heads_answer_with_any_sensor_missing(fusion: str) -> None:
    net = Sensors(fusion=fusion).models()["net"].eval()
    assert len(net.branches) == (5 if fusion == "late" else 1)
    x_BCT = Sensors().batch("train", 0)[0]
    whole = net(x_BCT)
    assert whole.activity_BK.shape == (32, 8) and whole.posture_BK.shape == (32, 3)
    for modality in MODALITIES:
        part = net(left_out(x_BCT, modality))
        assert bool(part.activity_BK.isfinite().all()) and bool(part.posture_BK.isfinite().all())
        assert not torch.equal(part.activity_BK, whole.activity_BK)
    assert bool(net(torch.full_like(x_BCT, torch.nan)).activity_BK.isfinite().all())
    assert bool(x_BCT.isfinite().all())


def test_a_missing_sensor_reaches_its_own_branch_only() -> None:
    net = Sensors().models()["net"].eval()
    seen: dict[str, torch.Tensor] = {}
    for name, branch in net.branches.items():
        branch.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
    x_BCT = Sensors().batch("train", 0)[0]
    net(x_BCT)
    whole = dict(seen)
    net(left_out(x_BCT, "gyro"))
    assert [name for name in seen if not torch.equal(seen[name], whole[name])] == ["gyro"]


def test_sensors_are_left_out_in_training_only_and_as_often_as_said() -> None:
    torch.manual_seed(0)
    net = SensorNet((8, 3), early=False, units=4, dropout=0.1)
    kept_B12 = net._kept(20000, torch.zeros(1))[:, :, 0]
    assert float(kept_B12.mean()) == pytest.approx(0.9, abs=0.01)
    assert torch.equal(kept_B12[:, 0], kept_B12[:, 2]) and torch.equal(
        kept_B12[:, 10], kept_B12[:, 11]
    )
    assert not torch.equal(kept_B12[:, 0], kept_B12[:, 3])
    x_BCT = torch.randn(4, 11, WINDOW)
    assert torch.equal(net.eval()(x_BCT).activity_BK, net(x_BCT).activity_BK)


def test_signals_are_scaled_by_the_training_set() -> None:
    task = Sensors()
    net = task.models()["net"]
    x_NCT = task.windows("train").x_NCT
    scaled_NCT = (signals(x_NCT) - net.mean_C1) / net.spread_C1
    assert torch.allclose(scaled_NCT.mean((0, 2)), torch.zeros(12), atol=1e-2)
    assert torch.allclose(scaled_NCT.std((0, 2)), torch.ones(12), atol=1e-2)
    assert {"mean_C1", "spread_C1"} <= set(net.state_dict())


def test_f1_is_that_of_the_textbook() -> None:
    counts_KK = confusion(torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 0]), 3)
    assert counts_KK.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert f1(counts_KK)[:2].tolist() == pytest.approx([2 / 3, 1 / 2])
    assert macro_f1(counts_KK) == pytest.approx(7 / 12)


def test_a_stream_in_pieces_decides_as_the_whole_does() -> None:
    samples_SC = np.arange(1000, dtype=np.float32)[:, None].repeat(11, 1)

    def decide(window_CT: np.ndarray) -> int:
        return int(window_CT[0, 0]) // 64 % 3

    whole = list(Stream(decide, WINDOW, 64).feed(samples_SC))
    stream, said = Stream(decide, WINDOW, 64), []
    for first in range(0, 1000, 37):
        said += list(stream.feed(samples_SC[first : first + 37]))
    assert said == whole and len(whole) == (1000 - WINDOW) // 64 + 1
    assert [raw for raw, _ in whole[:5]] == [0, 1, 2, 0, 1]


def test_a_vote_of_five_removes_a_slip() -> None:
    answers = iter([1, 1, 1, 2, 1, 1, 3, 3, 3])
    stream = Stream(lambda _: next(answers), 4, 4)
    votes = [vote for _, vote in stream.feed(np.zeros((36, 11), np.float32))]
    assert votes == [1, 1, 1, 1, 1, 1, 1, 3, 3]
    assert majority([2, 1, 1, 2]) == 2
    assert periods(votes) == [(0, 1), (7, 3)]


def _uci(root: Path) -> Path:
    """Write a tiny UCI-HAR: 12 windows of 6 people to train, 4 of 2 to test."""
    for part, people in (("train", range(1, 7)), ("test", (8, 9))):
        folder = root / part / "Inertial Signals"
        folder.mkdir(parents=True)
        rows = np.repeat(list(people), 2)
        labels = np.arange(len(rows)) % 6 + 1
        np.savetxt(root / part / f"subject_{part}.txt", rows, fmt="%d")
        np.savetxt(root / part / f"y_{part}.txt", labels, fmt="%d")
        for place, name in enumerate(f"{kind}_{axis}" for kind in ("total_acc", "body_gyro")
                                     for axis in "xyz"):  # fmt: skip
            np.savetxt(folder / f"{name}_{part}.txt", np.full((len(rows), 128), place + 0.5))
    return root


def test_uci_har_fills_acceleration_and_turn_rate(tmp_path: Path) -> None:
    parts = load_sensors(str(_uci(tmp_path)))
    assert {name: len(part) for name, part in parts.items()} == {"train": 8, "val": 4, "test": 4}
    x_NCT = parts["test"].x_NCT
    assert x_NCT[0, :6, 0].tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    assert bool(x_NCT[:, 6:].isnan().all())
    said = [ACTIVITIES[k] for k in parts["test"].activity_N]
    assert said == ["walk", "stairs-up", "stairs-down", "sit"]
    assert not set(parts["train"].subjects) & set(parts["val"].subjects)
    task = Sensors(data=str(tmp_path), batch_size=4)
    models = train_alone(replace(task, minibatches=2))
    with torch.no_grad():
        assert 0 <= task.score(models, task.batches("test"))["macro_f1"] <= 1


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [("train/y_train.txt", "9\n" * 12, "has the label 9 - allowed: 1 to 6"),
     ("train/subject_train.txt", "1\n", "has 12 labels - allowed: 1"),
     ("test/Inertial Signals/body_gyro_z_test.txt", "1 2\n", "1 lines of 2 numbers"),
     ("test/Inertial Signals/body_gyro_z_test.txt", "a b\n", "cannot be read"),
     ("test/Inertial Signals/total_acc_x_test.txt", "0 " * 128, "has 1 windows - allowed: 4")],
)  # fmt: skip
def test_malformed_uci_files_end_in_one_line(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    path = _uci(tmp_path) / name
    path.write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        load_sensors(str(tmp_path))
    assert "\n" not in str(caught.value) and path.parent.name in str(caught.value)


def test_pamap_takes_the_chest_at_half_the_rate(tmp_path: Path) -> None:
    table = np.zeros((600, 54))
    table[:, 1] = np.repeat([0, 4, 12], 200)
    table[:, 21:24], table[:, 27:30], table[:, 30:33] = 9.80665, 2.0, 25.0
    table[0, 21] = np.nan
    table[:, 1][:200] = 5
    for number in (101, 102, 103):
        np.savetxt(tmp_path / f"subject{number}.dat", table, fmt="%.5f")
    with pytest.raises(UsageError, match="no activity lasts 128 samples"):
        load_sensors(str(tmp_path))
    for number in (101, 102, 103):
        np.savetxt(tmp_path / f"subject{number}.dat", table.repeat(2, 0), fmt="%.5f")
    parts = load_sensors(str(tmp_path))
    assert [ACTIVITIES[k] for k in parts["test"].activity_N] == [
        *("run", "run", "walk", "walk", "stairs-up", "stairs-up")
    ]
    x_CT = parts["test"].x_NCT[1]
    assert x_CT[:9, 5].tolist() == pytest.approx([1, 1, 1, 2, 2, 2, 0.5, 0.5, 0.5])
    assert bool(x_CT[9:].isnan().all())


def _csv(path: Path, activity: str, columns: tuple[str, ...] = CHANNELS, rows: int = 200) -> Path:
    line = ",".join(str(n) for n in range(len(columns)))
    path.write_text("\n".join([",".join((*columns, "activity")), *[f"{line},{activity}"] * rows]))
    return path


def test_csv_files_are_split_by_subject(tmp_path: Path) -> None:
    for n in range(5):
        _csv(tmp_path / f"{n}.csv", "walk", ("gz", "ax"))
    parts = load_sensors(str(tmp_path))
    assert {name: len(part) for name, part in parts.items()} == {"train": 6, "val": 2, "test": 2}
    x_CT = parts["train"].x_NCT[0]
    assert (
        x_CT[0, 0] == 1
        and x_CT[5, 0] == 0
        and bool(x_CT[[1, 2, 3, 4, 6, 7, 8, 9, 10]].isnan().all())
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "has 0 lines"), ("ax,ay\n", "has 1 lines"), ("ax,bx\n1,2\n", "column 'bx'"),
     ("ax,ax\n1,2\n", "column 'ax' twice"), ("activity\nwalk\n", "has no channel"),
     ("ax,ay\n1,2\n1\n", "line 3: '1' has not 2 values"), ("ax\none\n", "'one' is no number"),
     ("ax,activity\n1,wlak\n", "activity 'wlak' is not known; closest: walk")],
)  # fmt: skip
def test_malformed_csv_files_end_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        read_csv(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_folder_with_nothing_and_too_short_a_recording(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no recordings - allowed: the folder of UCI-HAR"):
        load_sensors(str(tmp_path))
    task = Sensors()
    with pytest.raises(UsageError, match="has 100 samples - allowed: 128 or more"):
        task.predict(task.models(), _csv(tmp_path / "a.csv", "", rows=100))


@pytest.mark.parametrize(
    ("name", "value"),
    [("fusion", "both"), ("units", 0), ("dropout", 1.0), ("without", "gps"), ("batch_size", 0)],
)
def test_settings_that_cannot_work(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"task.{name}={value} cannot work - allowed: "):
        Sensors(**{name: value})  # type: ignore[arg-type]


def test_the_size_is_as_said() -> None:
    net = Sensors().models()["net"]
    assert sum(p.numel() for p in net.parameters()) == Sensors.parameters


@pytest.mark.slow
def test_it_learns_and_needs_each_sensor(tmp_path: Path) -> None:
    task = Sensors(minibatches=300)
    models = train_alone(task)
    with torch.no_grad():
        scores = task.score(models, task.batches("test"))
        blind = {
            name: task._confusion(models, [(left_out(x, name), *truth)
                                           for x, *truth in task.batches("test")])
            for name in ("gyro", "mag")
        }  # fmt: skip
        both = [
            (left_out(left_out(x, "gyro"), "mag"), *truth) for x, *truth in task.batches("test")
        ]
        still = float(f1(task._confusion(models, both))[TURN].nan_to_num())
    assert scores["macro_f1"] > 0.85 and scores["posture_f1"] > 0.9
    assert scores["stairs_f1"] > scores["stairs_without_alt"] + 0.1
    assert still < float(f1(blind["mag"])[TURN]) - 0.1
    base = task.baselines()
    assert base["commonest activity"] < 0.1 and base["untrained"] < 0.3
    assert scores["macro_f1"] > base["linear"]
    assert task.picture(models).width > 1000
    subject = record(0, SPLITS["test"][0], 1)
    rows = subject.samples_SC[subject.activity_S == RUN]
    path = tmp_path / "run.csv"
    np.savetxt(path, rows, delimiter=",", header=HEADER, comments="")
    answer = task.predict(models, path)
    assert (answer["activity"], answer["posture"]) == ("run", "stand")
    assert answer["periods"] == [{"from": 0.0, "activity": "run", "posture": "stand"}]
