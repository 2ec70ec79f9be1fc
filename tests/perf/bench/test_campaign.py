"""The campaign: steps in their order on few GPUs, what is there is kept, what fails takes along only what needs it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from perf.bench import campaign
from perf.bench.campaign import Step, chosen, merge, run, steps

WRITE = (
    "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(os.environ['CUDA_VISIBLE_DEVICES'] + ' ' +"
    " os.environ['OMP_NUM_THREADS'])"
)


def step(name: str, folder: Path, *needs: str, code: str = WRITE) -> Step:
    return Step(name, ("-c", code, str(folder / name)), folder / name, needs)


def go(plan: list[Step], folder: Path, devices: tuple[str, ...] = ("3", "5"), seconds: float = 600) -> dict[str, str]:
    return run(plan, devices, folder, seconds)


def test_each_step_has_a_gpu_and_its_share_of_the_cores(tmp_path: Path) -> None:
    plan = [step(name, tmp_path) for name in "abc"] + [step("last", tmp_path, "a", "b")]
    assert go(plan, tmp_path) == dict.fromkeys(["a", "b", "c", "last"], "done")
    share = str(max(1, len(os.sched_getaffinity(0)) // 2))
    found = [tuple((tmp_path / name).read_text().split()) for name in "abc"]
    assert {device for device, _ in found} == {"3", "5"}
    assert {threads for _, threads in found} == {share}


def test_what_is_there_is_not_run_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    assert go([step("a", tmp_path), step("b", tmp_path, "a")], tmp_path) == {"a": "there", "b": "done"}
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("code", ["raise SystemExit(1)", "pass"], ids=["it ends with an error", "it writes nothing"])
def test_a_failure_takes_along_only_what_needs_it(tmp_path: Path, code: str) -> None:
    plan = [
        step("bad", tmp_path, code=code),
        step("after", tmp_path, "bad"),
        step("later", tmp_path, "after"),
        step("good", tmp_path),
    ]
    assert go(plan, tmp_path) == {"bad": "failed", "after": "left out", "later": "left out", "good": "done"}
    assert (tmp_path / "log" / "bad.txt").is_file()


def test_no_step_begins_when_time_is_up(tmp_path: Path) -> None:
    assert go([step("a", tmp_path)], tmp_path, seconds=-1) == {"a": "left out"}


def test_the_real_campaign_is_whole_and_every_command_is_understood(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = steps("random", (1008, 672), tmp_path, tensorrt=True)
    names = [one.name for one in plan]
    assert [one.name for one in steps("random", (1008, 672), tmp_path)] == [
        name for name in names if "plans" not in name
    ]
    assert len(set(names)) == len(names)
    assert {need for one in plan for need in one.needs} <= set(names)
    for one in plan:
        assert one.arguments[1] in ("perf.cli", "export.cli")
        module = __import__(one.arguments[1], fromlist=["main"])
        with pytest.raises(SystemExit):
            module.main([*one.arguments[2:], "--no-such-option"])
        assert capsys.readouterr().err.strip().endswith("unrecognized arguments: --no-such-option"), one
    assert [one.name for one in chosen(plan, ["end_to_end-672"])] == ["export-672", "end_to_end-672"]
    found = {one.name: str(one) for one in plan}
    assert found["kernels"] == f"kernels: sam3-perf bench kernels --output {tmp_path}/kernels.json"
    assert found["export-672"].startswith("export-672: sam3-export --checkpoint random")


def test_parts_are_merged(tmp_path: Path) -> None:
    for number in (1, 2):
        part = {"command": f"c{number}", "date": "d", "machine": {"gpu": "g"}, "rows": [number]}
        (tmp_path / f"engines-{number}.json").write_text(json.dumps(part))
    merge(tmp_path, "engines")
    merge(tmp_path, "sweep")
    assert json.loads((tmp_path / "engines.json").read_text()) == {
        "command": "c1",
        "date": "d",
        "machine": {"gpu": "g"},
        "rows": [1, 2],
        "commands": ["c1", "c2"],
    }
    assert not (tmp_path / "sweep.json").exists()


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(campaign.gpu, "gpus", list)
    assert campaign.main(["--output", str(tmp_path)]) == 2
    assert "NVML shows none" in capsys.readouterr().err
