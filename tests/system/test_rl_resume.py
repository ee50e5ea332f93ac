"""An agent's training that is killed anywhere goes on to the same bytes: weights, memories, environments, episodes.

By the recipes themselves, small, each resumed in the middle of a stretch and at its end (as `tests.system.resumes` does
after every step of its models). Where the state of the environments cannot be saved, the training goes on too,
and says what is not exact.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from morphogen.experiment import Experiment
from morphogen.hooks import Voice
from morphogen.own import restore_own
from morphogen.recipes.cartpole_dqn import cartpole_dqn
from morphogen.recipes.cartpole_ppo import cartpole_ppo
from morphogen.recipes.cartpole_recurrent import cartpole_recurrent
from morphogen.recipes.halfcheetah_ppo import halfcheetah_ppo
from morphogen.recipes.lunarlander_ppo import lunarlander_ppo
from morphogen.recipes.pendulum_sac import pendulum_sac
from morphogen.recipes.pendulum_td3 import pendulum_td3

from . import resumes

STEPS = 6
SMALL = {
    "experience": 2 * 4 * STEPS // 3,
    "envs": 2,
    "length": 4,
    "epochs": 3,
    "pieces": 1,
    "width": 8,
}  # 3 steps a stretch
AGENTS: dict[str, tuple[Callable[[int], Experiment], str]] = {  # and the package that it needs
    "ppo on tensors": (lambda steps: cartpole_ppo(**SMALL), ""),
    "ppo on gymnasium": (lambda steps: cartpole_ppo(**SMALL, gymnasium=True), "gymnasium"),
    "ppo on MuJoCo": (lambda steps: halfcheetah_ppo(**SMALL), "mujoco"),
    "ppo with a memory": (lambda steps: cartpole_recurrent(**SMALL), ""),
    "dqn": (
        lambda steps: cartpole_dqn(
            steps, envs=2, batch=4, warmup=3, capacity=10, width=8, copy_every=2, explore=4, prioritised=True
        ),
        "",
    ),
    "sac": (lambda steps: pendulum_sac(steps, batch=4, warmup=3, capacity=10, width=8), ""),
    "td3": (lambda steps: pendulum_td3(steps, batch=4, warmup=3, capacity=10, width=8), ""),
}


QUICK = ("ppo on gymnasium", "ppo with a memory", "dqn")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in AGENTS])
def test_an_agent_resumed_after_any_step_ends_in_the_same_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, package = AGENTS[name]
    if package:
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'morphogen[rl]'")
    monkeypatch.setattr(resumes, "MAKES", {"agent": make})
    fresh = resumes.straight("agent", STEPS, tmp_path / "whole")
    for step, until in ((1, 4), (3, STEPS)):
        assert resumes.resumed(fresh, tmp_path / "whole", tmp_path / "resumed", step, until), f"after step {step}"


def test_what_is_not_exact_is_said(tmp_path: Path) -> None:
    """Box2D: the training goes on in new episodes."""
    pytest.importorskip("Box2D", reason="Box2D is not installed: pip install 'morphogen[rl]'")

    class Said(Voice):
        def __init__(self) -> None:
            self.texts: list[str] = []

        def say(self, text: str) -> None:
            self.texts.append(text)

    def made() -> Experiment:
        return lunarlander_ppo(**SMALL)

    made().train(tmp_path / "run", voice=Said(), until=3, device="cpu")
    voice = Said()
    assert made().train(tmp_path / "run", voice=voice, device="cpu").step == STEPS
    assert any("Not exact after this resume" in text and "Box2D" in text for text in voice.texts)


def test_what_a_source_remembers_comes_back_on_the_device_of_the_training() -> None:
    """Memories, rewards and what was heard were read from a file, on the CPU."""

    class Kept:
        def restore(self, state: dict[str, object]) -> None:
            self.state = state

    held, where = torch.arange(3.0), torch.device("meta")
    source, voice, ranks = Kept(), Voice(), SimpleNamespace(count=1)
    training = SimpleNamespace(rank=0, ranks=ranks, device=where, source=source, voice=voice, model=torch.nn.Module())
    state = {"held": held, "more": {"each": [held, {"n": 3}]}, "memory": None}
    heard = {"loss": (held, {"kl": held}, {"priority": held})}
    restore_own(training, {"loop": {"heard": heard}, "source": {"state": state}})  # type: ignore[arg-type]
    more = source.state["more"]
    assert source.state["memory"] is None
    assert more["each"][1] == {"n": 3}  # type: ignore[index]
    loss = training.heard["loss"]
    found = [source.state["held"], more["each"][0], loss.value, loss.logs["kl"], loss.seen["priority"]]  # type: ignore[index]
    assert all(t.device == where for t in found)  # type: ignore[union-attr]
