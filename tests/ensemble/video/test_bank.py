import numpy as np
import pytest

from ensemble.spec import Checkpoint, Tracker, Variant
from ensemble.tracker_interfaces import EMPTY_AGE
from ensemble.video.bank import Bank
from ensemble.video.sizes import slot_bytes

SMALL = Variant(28, precision="fp32", checkpoint=Checkpoint(hidden_size=8), tracker=Tracker(16, 8))
"""Two patches a side."""


def told(bank, frame, given=False, slots=(0,)):
    """Writes the frame's number into memory and pointer of these slots."""
    memory = np.full((len(slots), 4, 64), frame, np.float32)
    pointers = np.full((len(slots), 8), frame, np.float32)
    with bank.writing():
        bank.write(list(slots), [frame] * len(slots), list(range(len(slots))), memory, pointers, given)


def remembered(bank, frame, slot=0):
    """Of one slot: map's frame -> age, pointer's frame -> age."""
    found = bank.read([slot], [frame])
    maps = {int(m[0, 0]): int(a) for m, a in zip(found.memory[0], found.memory_age[0], strict=True) if a != EMPTY_AGE}
    ages = zip(found.pointers[0], found.pointer_age[0], strict=True)
    return maps, {int(p[0]): float(a) for p, a in ages if a != EMPTY_AGE}


def test_a_given_mask_never_grows_old_and_others_are_kept_for_six_frames():
    bank = Bank(SMALL, 2)
    told(bank, 0, given=True)
    for frame in range(1, 30):
        told(bank, frame)
    maps, pointers = remembered(bank, 30)
    assert maps == {0: 0, **{30 - age: age for age in range(1, 7)}}
    assert pointers == {0: 30.0, **{30 - age: float(age) for age in range(1, 16)}}


def test_the_oldest_of_four_conditioning_frames_makes_room():
    bank = Bank(SMALL, 1)
    for frame in (0, 16, 32, 48, 64):
        told(bank, frame, given=True)
    maps, pointers = remembered(bank, 65)
    assert maps == dict.fromkeys((16, 32, 48, 64), 0)
    assert pointers == {frame: 65.0 - frame for frame in (16, 32, 48, 64)}


def test_frames_that_were_not_written_are_not_remembered():
    bank = Bank(SMALL, 1)
    told(bank, 0, given=True)
    told(bank, 1)
    maps, pointers = remembered(bank, 12)
    assert maps == {0: 0}
    assert pointers == {0: 12.0, 1: 11.0}


def test_the_axes_are_as_long_as_the_fullest_object_needs():
    bank = Bank(SMALL, 3)
    told(bank, 0, given=True, slots=(0, 2))
    for frame in (1, 2, 3):
        told(bank, frame, slots=(2,))
    found = bank.read([0, 2], [4, 4])
    assert found.memory.shape == (2, 4, 4, 64)
    assert found.memory_age.tolist() == [[0, EMPTY_AGE, EMPTY_AGE, EMPTY_AGE], [0, 3, 2, 1]]
    assert found.memory_age.dtype == np.int32
    assert found.pointer_age.dtype == np.float32


def test_objects_of_different_videos_are_read_at_their_own_frames():
    bank = Bank(SMALL, 2)
    told(bank, 0, given=True, slots=(0,))
    told(bank, 100, given=True, slots=(1,))
    assert bank.read([0, 1], [3, 107]).pointer_age.tolist() == [[3.0], [7.0]]


def test_a_cleared_slot_knows_nothing_of_the_object_before():
    bank = Bank(SMALL, 1)
    for frame in range(20):
        told(bank, frame, given=not frame)
    with bank.writing():
        bank.clear(0)
    told(bank, 2, given=True)
    assert remembered(bank, 3) == ({2: 0}, {2: 1.0})


def test_only_the_rows_that_are_named_are_written():
    bank = Bank(SMALL, 2)
    memory = np.arange(3, dtype=np.float32)[:, None, None] * np.ones((3, 4, 64), np.float32)
    with bank.writing():
        bank.write([1], [5], [2], memory, np.zeros((3, 8), np.float32), given=True)
    assert remembered(bank, 6, slot=1)[0] == {2: 0}


@pytest.mark.parametrize(("precision", "element"), [("fp32", 4), ("fp16", 2), ("int8", 4)])
def test_what_a_slot_takes_is_what_is_allocated(precision, element):
    variant = Variant(28, precision=precision, checkpoint=SMALL.checkpoint, tracker=SMALL.tracker)
    bank = Bank(variant, 5)
    assert slot_bytes(variant) == element * (10 * 4 * 64 + 19 * 8)
    assert bank.nbytes == 5 * slot_bytes(variant) == bank._memory.nbytes + bank._pointers.nbytes


def test_ten_objects_of_sam3_at_its_own_resolution():
    whole = Variant(1008, tracker=Tracker())
    assert 10 * slot_bytes(whole) / 1e6 == pytest.approx(66.5, abs=0.1)


def test_a_frame_that_fails_half_way_leaves_everything_as_it_was():
    bank = Bank(SMALL, 2)
    for frame in range(20):
        told(bank, frame, given=frame < 4)
    before = remembered(bank, 20)

    def half_a_frame():
        with bank.writing():
            for given in (False, True):
                bank.write([0], [20], [0], np.ones((1, 4, 64)), np.ones((1, 8)), given)
            bank.clear(0)
            raise MemoryError

    with pytest.raises(MemoryError):
        half_a_frame()
    assert remembered(bank, 20) == before
    told(bank, 20)
    assert remembered(bank, 21)[0] == {**dict.fromkeys(range(4), 0), **{21 - age: age for age in range(1, 7)}}
