"""PPO beside stable-baselines3 and CleanRL: the same nets, environments, stretches, epochs and minibatches.

Env-steps a second on gymnasium's CartPole-v1 (8 environments) and HalfCheetah-v5 (one), and the seconds until the mean
return of the last 20 episodes is 475 on CartPole, by the tuned numbers of rl-baselines3-zoo, a seed for each round;
ours also on the tensors of `Simulated(CartPole())`. CleanRL's scripts run as they are from a checkout (peers/rl.py). On
HalfCheetah CleanRL standardises what is seen and earned and stable-baselines3 does not; ours does.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import Metric, Registry, Work, import_file

peers = import_file(Path(__file__).resolve().parent.parent / "peers" / "rl.py", "peers_rl")
CAP, WINDOW = 100_000, 20
REG = Registry(
    "ppo",
    rounds=10,
    slice=0.1,
    budget=900,
    needs={"sb3": ("stable_baselines3",), "cleanrl": ("gymnasium", "tyro", "tensorboard"), "morphogen": ("gymnasium",)},
    pairs=[
        *(
            (f"morphogen/{of}", f"{peer}/{of}", 0.5)
            for of in ("cartpole", "halfcheetah")
            for peer in ("sb3", "cleanrl")
        ),
        ("morphogen/solve", "sb3/solve", 0.5),
        ("morphogen/solve on tensors", "sb3/solve", 1 / 3),
    ],
)
SPECS: Mapping[str, tuple[str, int]] = {
    "cartpole": ("ppo-cartpole", 8192),
    "halfcheetah": ("ppo-halfcheetah", 4096),
}


def _ours(of: str, steps: int, seed: int, tensors: bool = False, watched: bool = False) -> tuple[bool, int]:
    """A training of `steps` env-steps; whether it ended at the mean return of 475, and the env-steps taken."""
    import torch

    from morphogen.experiment import Data
    from morphogen.hooks import Voice
    from morphogen.optim import AdamW, Linear
    from morphogen.rl.env import CartPole, Gymnasium, Simulated
    from morphogen.rl.presets import ppo
    from morphogen.rl.rollouts import GAE, Rollouts, standard
    from morphogen.train import Trainer, Training

    torch.manual_seed(seed)
    if of == "cartpole":
        env = Simulated(CartPole(), 8) if tensors else Gymnasium("CartPole-v1", 8)
        updates = max(1, steps // 256) * 20
        model, rate = ppo(env, until=max(1, CAP // 256) * 20), 1e-3
        source = Rollouts(env, 32, estimate=GAE(0.98, 0.8), epochs=20, finish=standard)
    else:
        env = Gymnasium("HalfCheetah-v5", 1)
        updates = max(1, steps // 2048) * 320
        model, rate = ppo(env, value_clip=0.2, observations=True, returns=True), 3e-4
        source = Rollouts(env, 2048, epochs=10, pieces=32, finish=standard)
    trainer = Trainer(
        CAP // 256 * 20 if watched else updates,
        optim=AdamW(rate, eps=1e-5, schedule=Linear(flat=0.0)),
        clip=0.5,
        save_every=10**9,
        log_every=1000,
    )
    run = Path(tempfile.mkdtemp())
    training = Training(trainer, model, Data(source), run, seed=seed, device=torch.device("cpu"), voice=Voice())
    training.begin()
    for step in range(updates):
        training.advance()
        recent = source._player.recent
        if watched and step % 20 == 0 and len(recent) >= WINDOW and sum(list(recent)[-WINDOW:]) / WINDOW >= 475:
            return True, (step // 20 + 1) * 256
    return False, steps


def morphogen(of: str) -> Work:
    spec, steps = SPECS[of]
    seed = [0]

    def run() -> int:
        seed[0] += 1
        _ours(of, steps, seed[0])
        return steps

    versions = ("torch", "gymnasium", "morphogen", *(("mujoco",) if of == "halfcheetah" else ()))
    config = dict(peers.SPECS[spec]["cfg"], env=peers.SPECS[spec]["env"], steps=steps)
    return Work({"train": Metric(run, "env-steps/s", once=True)}, config, versions)


def solving(tensors: bool) -> Work:
    seed = [0]
    _ours("cartpole", 2048, 0, tensors)

    def run() -> None:
        seed[0] += 1
        began = time.perf_counter()
        solved, steps = _ours("cartpole", CAP, seed[0], tensors, watched=True)
        print("SOLVE", solved, steps, round(time.perf_counter() - began, 2), flush=True)
        if not solved:
            raise RuntimeError(f"not solved in {CAP} steps")

    config: dict[str, Any] = dict(peers.SPECS["ppo-cartpole"]["cfg"], cap=CAP, window=WINDOW, tensors=tensors)
    return Work({"time_to_475": Metric(run, "s", kind="time", once=True, warmup=0)}, config, ("torch", "morphogen"))


for of, (spec, _) in SPECS.items():
    REG.add(f"morphogen/{of}", functools.partial(morphogen, of), of, smoke=True)
    for peer in ("sb3", "cleanrl"):
        REG.add(f"{peer}/{of}", functools.partial(peers.build, peer, spec, 1), of)
REG.add("morphogen/solve", functools.partial(solving, False), "solve")
REG.add("morphogen/solve on tensors", functools.partial(solving, True), "solve")
for peer in ("sb3", "cleanrl"):
    REG.add(f"{peer}/solve", functools.partial(peers.build_solve, peer, 1), "solve")
