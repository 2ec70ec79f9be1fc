"""The tracker's loss and the measures J and F on masks whose values are known."""

import pytest
import torch

from export.tiny.video.losses import losses, visible
from export.tiny.video.metrics import boundary, edges, region


def square(side, top, left, size):
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[top : top + size, left : left + size] = True
    return mask


@pytest.fixture
def truth():
    return torch.stack([square(80, 20, 20, 30), torch.zeros(80, 80, dtype=torch.bool)])


def logits_of(mask):
    small = torch.nn.functional.avg_pool2d(mask[None, None].float(), 2)[0, 0]
    return 20 * small - 10


def predicted(truth, good):
    """Logits [2, 3, 40, 40] whose mask number `good` is right and whose others are empty."""
    logits = torch.full((2, 3, 40, 40), -10.0)
    logits[0, good] = logits_of(truth[0])
    return logits


@pytest.mark.parametrize("good", [0, 1, 2])
def test_one_right_mask_of_three_is_enough(truth, good):
    ious = torch.zeros(2, 3)
    ious[0, good] = 1
    told = losses(predicted(truth, good), ious, torch.tensor([8.0, -8.0]), truth, torch.ones(2, dtype=torch.bool), 0.0)
    assert told.total < 0.05
    assert told.overlap > 0.95
    assert told.hits == 1


def test_shared_loss_falls_on_all_three(truth):
    ious, scores, real = torch.zeros(2, 3), torch.tensor([8.0, -8.0]), torch.ones(2, dtype=torch.bool)
    alone, shared = (losses(predicted(truth, 0), ious, scores, truth, real, share) for share in (0.0, 1.0))
    assert shared.dice > alone.dice + 0.5


def test_hidden_and_filling_objects_do_not_count_for_masks(truth):
    ious, scores = torch.zeros(2, 3), torch.tensor([-8.0, -8.0])
    told = losses(predicted(truth, 0), ious, scores, truth, torch.tensor([False, True]), 1.0)
    assert told.total < 0.01  # the first, which is wrong, fills the batch; the second is hidden, and said to be


def test_visible_asks_for_a_few_pixels():
    masks = torch.stack([square(20, 0, 0, size) for size in (0, 1, 2)])
    assert visible(masks).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("shift", "j", "f"),
    [(0, 1.0, 1.0), (1, 0.818, 1.0), (60, 0.0, 0.0)],
    ids=["equal", "within the tolerance", "apart"],
)
def test_j_and_f(shift, j, f):
    wanted, found = square(120, 10, 10, 10)[None], square(120, 10, 10 + shift, 10)[None]
    assert region(found, wanted).item() == pytest.approx(j, abs=1e-3)
    assert boundary(found, wanted).item() == pytest.approx(f, abs=1e-6)


def test_nothing_where_nothing_is_agrees():
    nothing, something = torch.zeros(1, 40, 40, dtype=torch.bool), square(40, 4, 4, 9)[None]
    assert region(nothing, nothing) == boundary(nothing, nothing) == 1
    assert region(something, nothing) == boundary(something, nothing) == 0
    assert not edges(nothing).any()
