"""The autoscaling settings that are simulated: those that `deploy/kubernetes/` deploys, and two that are worse."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from perf.scale.autoscaler import Behavior, Policy, Rules

DEPLOYED = Path(__file__).parents[2] / "deploy" / "kubernetes" / "components" / "monitoring"
WAIT, OLDEST, USE = "wait over work", "oldest frame", "GPU utilisation"


class SettingsError(ValueError):
    """A ScaledObject that cannot be simulated; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """One metric: which, its target, the seconds that it looks back, and the value that it is cut off at."""

    metric: str
    target: float
    window_s: int
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    name: str
    triggers: tuple[Trigger, ...]
    behavior: Behavior


def deployed(folder: Path = DEPLOYED) -> Settings:
    """The settings of the KEDA ScaledObject in a folder, whose queries may name recording rules there. Raises
    SettingsError."""
    documents = [d for path in sorted(folder.glob("*.yaml")) for d in yaml.safe_load_all(path.read_text())]
    found = [d for d in documents if d["kind"] == "ScaledObject"]
    if len(found) != 1:
        raise SettingsError(f"{folder}: expected one ScaledObject, got {len(found)}")
    groups = [group for d in documents if d["kind"] == "PrometheusRule" for group in d["spec"]["groups"]]
    rules = {rule["record"]: rule["expr"] for group in groups for rule in group["rules"] if "record" in rule}
    return read(found[0], rules)


def read(scaled_object: dict[str, Any], rules: Mapping[str, str]) -> Settings:
    """The settings of a ScaledObject; `rules` are the expressions of recording rules by name. Raises SettingsError."""
    spec = scaled_object["spec"]
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    return Settings(
        "chosen",
        tuple(_trigger(trigger, rules) for trigger in spec["triggers"]),
        Behavior(
            int(spec["minReplicaCount"]),
            int(spec["maxReplicaCount"]),
            _rules(behavior["scaleUp"], 0),
            _rules(behavior["scaleDown"], 300),
        ),
    )


def _trigger(trigger: dict[str, Any], rules: Mapping[str, str]) -> Trigger:
    if trigger.get("metricType") != "Value":
        raise SettingsError(
            f"expected metricType Value, got {trigger.get('metricType', 'AverageValue, the default')}; "
            "an average is divided by the number of pods, which a ratio must not be"
        )
    query = trigger["metadata"]["query"]
    if not (window_s := _window_s(query, rules)):
        raise SettingsError(f"expected a query over a time such as [1m], itself or by recording rules, got {query!r}")
    limit = re.search(r"clamp_max\(.*, ([\d.]+)\)", query)
    metric = OLDEST if "oldest" in query else WAIT
    return Trigger(metric, float(trigger["metadata"]["threshold"]), window_s, float(limit[1]) if limit else None)


def _window_s(query: str, rules: Mapping[str, str]) -> int:
    """The longest time that a query looks back, in it or in the rules that it names."""
    own = [int(number) * (60 if unit == "m" else 1) for number, unit in re.findall(r"\[(\d+)([sm])\]", query)]
    named = [rules[name] for name in re.findall(r"[a-z_0-9]+(?::[a-z_0-9]+)+", query) if name in rules]
    return max([0, *own, *(_window_s(rule, rules) for rule in named)])


def _rules(rules: dict[str, Any], window_s: int) -> Rules:
    """`window_s` is Kubernetes' default."""
    policies = tuple(Policy(p["type"], int(p["value"]), int(p["periodSeconds"])) for p in rules["policies"])
    if rules.get("selectPolicy", "Max") != "Max":
        raise SettingsError(f"expected selectPolicy Max, got {rules['selectPolicy']}; leave it out")
    return Rules(int(rules.get("stabilizationWindowSeconds", window_s)), policies)


def without_slow_down(chosen: Settings) -> Settings:
    """Shrinks at once by whatever is proposed."""
    behavior = replace(chosen.behavior, down=Rules(0, (Policy("Percent", 100, 15),)))
    return replace(chosen, name="without the slow-down", behavior=behavior)


def by_utilisation(chosen: Settings, target: float) -> Settings:
    """Scales on the mean utilisation that the cards show, which is 1 at most."""
    return replace(chosen, name=f"GPU utilisation {target:.0%}", triggers=(Trigger(USE, target, 60),))


def fixed(pods: int) -> Settings:
    """So many pods all day."""
    still = Rules(0, (Policy("Pods", 1, 60),))
    return Settings(f"{pods} pods all day", (Trigger(WAIT, 1.0, 60),), Behavior(pods, pods, still, still))


def neighbours(chosen: Settings) -> list[Settings]:
    """Other targets, windows before shrinking, and per cents of growing and shrinking, one at a time."""
    wait, *guards = chosen.triggers
    up, down = chosen.behavior.up, chosen.behavior.down

    def step(rules: Rules, percent: int) -> Rules:
        first, *rest = rules.policies
        return replace(rules, policies=(replace(first, value=percent), *rest))

    targets = [replace(wait, target=target) for target in (0.15, 0.2, 0.25, 0.35, 0.4, 0.5, 1.0)]
    behaviors = [
        *(replace(chosen.behavior, down=replace(down, window_s=seconds)) for seconds in (0, 300, 900)),
        *(replace(chosen.behavior, down=step(down, percent)) for percent in (5, 25, 100)),
        *(replace(chosen.behavior, up=step(up, percent)) for percent in (25, 50, 400)),
    ]
    return [
        chosen,
        *(replace(chosen, triggers=(target, *guards)) for target in targets),
        *(replace(chosen, behavior=behavior) for behavior in behaviors),
    ]
