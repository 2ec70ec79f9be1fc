"""Training: matching and losses of known values, a forward pass equal to the model's own, and steps that lower the
loss."""

import numpy as np
import pytest
import torch
from transformers.models.sam3.modeling_sam3 import box_cxcywh_to_xyxy

from export.tiny.configuration import build_model, set_resolution, tiny_config
from export.tiny.dataset import MAX_BOXES, PROMPTS, draw_batch, normalised
from export.tiny.losses import Targets, giou, losses, match, matching_costs, targets_of
from export.tiny.network import Positions, Predictions, forward_all_layers
from export.tiny.parallel import Team
from export.tiny.random_scene import FIRST_TRAINING_SEED
from export.tiny.tokenizer import build_tokenizer
from export.tiny.train import Recipe, Trainer

SEEDS = [FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + 1]


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        ((0.5, 0.5, 0.2, 0.2), (0.5, 0.5, 0.2, 0.2), 1.0),  # equal
        ((0.5, 0.5, 0.2, 0.2), (0.5, 0.5, 0.2, 0.1), 0.5),  # half
        ((0.2, 0.5, 0.2, 0.2), (0.6, 0.5, 0.2, 0.2), -1 / 3),  # apart: a hull of three, a union of two
    ],
)
def test_giou(a: tuple, b: tuple, value: float) -> None:
    assert giou(torch.tensor(a), torch.tensor(b)).item() == pytest.approx(value, abs=1e-4)


def test_match_takes_the_cheapest_assignment() -> None:
    costs = np.full((1, 2, 3, 2), 9.0)
    costs[0, 1, :, 0] = 1.0, 2.0, 9.0  # the first query is best for both objects,
    costs[0, 1, :, 1] = 0.0, 9.0, 9.0  # so object 0 goes to the second
    rows = match(costs, np.array([0, 2]))
    assert rows.tolist() == [[0, 1, 0, 1], [0, 1, 1, 0]]


def perfect(q: int = 4, m: int = 6) -> tuple[Predictions, Targets, torch.Tensor]:
    """One scene, two pairs: the first names an object in the upper left quarter, the second nothing. Every answer is
    right and certain."""
    boxes = torch.tensor([0.25, 0.25, 0.5, 0.5]).expand(1, 2, q, 4).clone()
    boxes[:, :, 1:, 0] = 0.9
    logits = torch.full((1, 2, q), -20.0)
    logits[0, 0, 0] = 20.0
    index_map = torch.zeros(1, 2 * m, 2 * m, dtype=torch.uint8)
    index_map[:, :m, :m] = 3
    cells = (index_map[0, ::2, ::2] == 3).float() * 40 - 20
    masks = cells.expand(2, q, m, m)
    semantic = torch.stack([cells, torch.full_like(cells, -20.0)])
    targets = Targets(boxes[0, :, :1].clone(), torch.tensor([1, 0]), torch.tensor([[3], [0]]), torch.tensor([0, 0]))
    presence, memory = torch.tensor([[20.0, -20.0]]), torch.zeros(2, 1, 1)
    return Predictions(boxes, logits, presence, masks, semantic, memory), targets, index_map


def test_right_and_certain_answers_cost_nothing() -> None:
    predictions, targets, index_map = perfect()
    rows = torch.from_numpy(match(matching_costs(predictions, targets).numpy(), targets.counts.numpy()))
    assert rows.tolist() == [[0, 0, 0, 0]]
    parts = losses(predictions, targets, index_map, rows)
    assert parts["loss"].item() == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("presence", "presence_logits", torch.tensor([[-2.0, 2.0]])),
        ("class", "logits", torch.full((1, 2, 4), -2.0)),
        ("mask", "masks", torch.zeros(2, 4, 6, 6)),
        ("semantic", "semantic", torch.zeros(2, 6, 6)),
    ],
)
def test_each_part_of_the_loss_grows_with_its_own_mistake(part: str, field: str, value: torch.Tensor) -> None:
    predictions, targets, index_map = perfect()
    setattr(predictions, field, value)
    parts = losses(predictions, targets, index_map, torch.tensor([[0, 0, 0, 0]]))
    assert parts[part].item() > 0.1
    assert parts["l1"].item() == pytest.approx(0.0, abs=1e-6)


def test_a_batch_holds_what_the_scene_holds() -> None:
    batch = draw_batch(SEEDS, 140)
    assert batch.pixels.shape == (2, 140, 140, 3)
    assert batch.index_map.shape == (2, 80, 80)
    assert batch.input_ids.shape == (2, PROMPTS, 32)
    assert batch.boxes.shape == (2, MAX_BOXES, 4)
    targets = targets_of(batch)
    for n, count in enumerate(targets.counts):
        for g in range(int(count)):
            inside = (batch.index_map[targets.scene[n]] == targets.index[n, g]).nonzero().float().mean(0) / 80
            x, y, w, h = targets.boxes[n, g]
            assert abs(inside[1] - x) < w
            assert abs(inside[0] - y) < h


@pytest.mark.parametrize("resolution", [252, 140])  # whole windows and padded ones
def test_training_path_equals_the_models_own_forward(resolution: int) -> None:
    model = build_model(build_tokenizer()).eval()
    set_resolution(model, resolution)
    batch = draw_batch(SEEDS, resolution)
    with torch.inference_mode():
        ours = forward_all_layers(model, batch, Positions(model))
        for n in range(2 * PROMPTS):
            b, p = divmod(n, PROMPTS)
            inputs = {"input_ids": batch.input_ids[b, p][None], "attention_mask": batch.attention_mask[b, p][None]}
            if p == PROMPTS - 1:
                inputs |= {"input_boxes": batch.boxes[b][None], "input_boxes_labels": batch.box_labels[b][None]}
            theirs = model(pixel_values=normalised(batch.pixels[b : b + 1]), **inputs)
            torch.testing.assert_close(
                box_cxcywh_to_xyxy(ours.boxes[-1, n]), theirs.pred_boxes[0], atol=1e-4, rtol=1e-3
            )
            torch.testing.assert_close(ours.logits[-1, n], theirs.pred_logits[0], atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(ours.presence_logits[-1, n], theirs.presence_logits[0, 0], atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(ours.masks[n], theirs.pred_masks[0], atol=1e-3, rtol=1e-3)


@torch.enable_grad()  # the room's tests compute without gradients otherwise
def test_a_few_steps_on_one_batch_lower_the_loss() -> None:
    trainer = Trainer(Recipe(scenes=2, warm_up=1), Team("cpu"))
    batch = draw_batch(SEEDS, 140)
    values = [float(trainer.step(batch, 0.0)["loss"].detach()) for _ in range(6)]
    assert values[-1] < 0.7 * values[0]


def test_a_resolution_between_patches_is_refused() -> None:
    with pytest.raises(ValueError, match="nearest: 238, 252"):
        tiny_config(699, 697, 698, image_size=250)
    with pytest.raises(ValueError, match="nearest: 140, 154"):
        set_resolution(build_model(build_tokenizer()), 141)
