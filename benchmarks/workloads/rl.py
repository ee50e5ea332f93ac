"""PPO, SAC and DQN: environment steps a second, beside stable-baselines3 and CleanRL; and 4,096 cart-poles a step.

The same environments, nets, memories and numbers of updates (rl-zoo's for PPO on CartPole); a call trains an agent.
Ours is the Trainer with all that it does (keyed noise, log, NaN watch), on gymnasium's environments; CartPole also on
the same physics as tensors. On HalfCheetah CleanRL standardises what is seen and earned and stable-baselines3 does not;
ours does. CleanRL's scripts are run as they are from a checkout; it pins gymnasium 0.29, so `shim` gives today's
gymnasium the behaviour that those scripts expect (same-step reset, the old info keys, two-argument
TransformObservation). The bare loop is what one writes by hand for PPO.

The check of PPO: from the same weights, one update by the same batch must end in the same weights (losses, clipping,
standardised advantages, the clip of gradients and Adam); CleanRL's script cannot be entered for that. The check of the
cart-poles: a step from the same states.
"""

from __future__ import annotations

import collections
import functools
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import harness
from harness import Check, Metric, Registry, Work, smoking

REG = Registry(
    "rl",
    rounds=7,
    slice=0.1,
    budget=420,
    rtol=1e-4,
    needs={"": ("gymnasium",), "sb3": ("stable_baselines3",)},
    pairs=[
        *[(f"morphogen/ppo-{e}", f"{p}/ppo-{e}", 0.5) for e in ("cartpole", "halfcheetah") for p in ("sb3", "cleanrl")],
        *[
            (f"morphogen/{a}", f"{p}/{a}", 1 / 1.5)
            for a in ("sac-pendulum", "dqn-cartpole")
            for p in ("sb3", "cleanrl")
        ],
        ("morphogen/ppo-cartpole", "loop/ppo-cartpole", None),
        ("morphogen-tensor/ppo-cartpole", "sb3/ppo-cartpole", None),
        ("morphogen/cart-poles", "gymnasium/cart-poles", None),
    ],
)
POLES = 4096
# PPO on CartPole by rl-zoo's numbers, as keywords of stable-baselines3 and as flags of CleanRL
ZOO = {"n_steps": 32, "batch_size": 256, "n_epochs": 20, "gamma": 0.98, "gae_lambda": 0.8, "ent_coef": 0.0}
ZOO_FLAGS = [
    *("--num-envs", "8", "--num-steps", "32", "--num-minibatches", "1", "--update-epochs", "20"),
    *("--gamma", "0.98", "--gae-lambda", "0.8", "--learning-rate", "1e-3", "--ent-coef", "0.0"),
    *("--vf-coef", "1.0", "--no-clip-vloss"),  # of half the squared error, where stable-baselines3 has 0.5 of the whole
]
SPECS: dict[str, dict[str, Any]] = {
    "ppo-cartpole": {
        "env": "CartPole-v1",
        "steps": 8192,
        "config": {"envs": 8, "n_steps": 32, "batch": 256, "epochs": 20, "net": "64, 64 twice"},
        "sb3": ("PPO", 8, lambda: {**ZOO, "learning_rate": linear(1e-3), "clip_range": linear(0.2)}),
        "cleanrl": ("ppo.py", ZOO_FLAGS),
    },
    "sac-pendulum": {
        "env": "Pendulum-v1",
        "steps": 500,
        "config": {"envs": 1, "batch": 256, "net": "256, 256", "learning_starts": 100, "train_freq": 1},
        "sb3": ("SAC", 1, lambda: {"learning_starts": 100, "batch_size": 256, "learning_rate": 1e-3}),
        "cleanrl": ("sac_continuous_action.py", ["--learning-starts", "100", "--batch-size", "256"]),
    },
    "dqn-cartpole": {
        "env": "CartPole-v1",
        "steps": 8000,
        "config": {"envs": 1, "batch": 128, "net": "120, 84", "learning_starts": 1000, "train_freq": 10},
        "sb3": (
            "DQN",
            1,
            lambda: {
                "learning_starts": 1000,
                "batch_size": 128,
                "train_freq": 10,
                "gradient_steps": 1,
                "target_update_interval": 500,
                "buffer_size": 10_000,
                "learning_rate": 2.5e-4,
                "policy_kwargs": {"net_arch": [120, 84]},
            },
        ),
        "cleanrl": ("dqn.py", ["--learning-starts", "1000", "--batch-size", "128", "--train-frequency", "10"]),
    },
    "ppo-halfcheetah": {
        "env": "HalfCheetah-v5",
        "steps": 4096,
        "config": {"envs": 1, "n_steps": 2048, "batch": 64, "epochs": 10, "net": "64, 64 twice"},
        "sb3": ("PPO", 1, lambda: {"n_steps": 2048, "batch_size": 64, "n_epochs": 10}),
        "cleanrl": ("ppo_continuous_action.py", ["--num-envs", "1"]),
    },
}
Run = Callable[[int], int]  # train for so many environment steps; how many it took


def linear(value: float) -> Callable[[float], float]:
    """A number that falls to 0 with what is left of the training."""
    return lambda left: left * value


# ---- when it is solved ---------------------------------------------------------------------------------------------


class Solved(Exception):
    """Raised out of a training whose last 20 episodes have had a mean return of 475."""


class Returns:
    """The last returns of a training, and its steps."""

    def __init__(self) -> None:
        self.last: collections.deque[float] = collections.deque(maxlen=20)
        self.steps, self.best, self.stops = 0, 0.0, False

    def begin(self) -> None:
        self.last.clear()
        self.steps, self.best = 0, 0.0

    def note(self, value: float) -> None:
        self.last.append(float(value))
        if len(self.last) == 20:
            mean = sum(self.last) / 20
            self.best = max(self.best, mean)
            if self.stops and mean >= 475:
                raise Solved


TRACK = Returns()

# ---- ours ----------------------------------------------------------------------------------------------------------


def environment(spec: str, tensors: bool, envs: int = 0) -> Any:
    """Our environments of a piece of work: gymnasium's, or the same as tensors. envs: how many (0: as theirs)."""
    from morphogen.rl.env import CartPole, Gymnasium, Pendulum, Simulated

    envs = envs or SPECS[spec]["config"]["envs"]
    if tensors:
        return Simulated({"CartPole-v1": CartPole, "Pendulum-v1": Pendulum}[SPECS[spec]["env"]](), envs)
    return Gymnasium(SPECS[spec]["env"], envs)


def rollouts(env: Any, *args: Any, **options: Any) -> Any:
    """A `Rollouts` that tells `TRACK` of the episodes that have ended."""
    from morphogen.rl.rollouts import Rollouts

    class Told(Rollouts):
        def start(self, place: Any) -> None:
            super().start(place)
            earned, player = self._player.earn, self._player

            def earn(reward: Any, ended: Any) -> None:
                earned(reward, ended)
                if over := int(ended.sum()):
                    for value in list(player.recent)[-over:]:
                        TRACK.note(value)

            player.earn = earn  # type: ignore[method-assign]

    return Told(env, *args, **options)


def ours(spec: str, tensors: bool = False, many: bool = False) -> Run:
    """A training of ours with the peers' numbers. many: PPO on 64 cart-poles at once, by numbers that suit so many."""
    from morphogen.core import Net
    from morphogen.experiment import Data
    from morphogen.hooks import Voice
    from morphogen.nets.ensemble import Ensemble
    from morphogen.nets.mlp import MLP
    from morphogen.optim import AdamW, Linear
    from morphogen.rl.dqn import DQN
    from morphogen.rl.policy import SquashedNormal
    from morphogen.rl.presets import ppo
    from morphogen.rl.replay import Replay
    from morphogen.rl.rollouts import GAE, standard
    from morphogen.rl.sac import SAC
    from morphogen.train import Trainer

    class Pyramid(Net):
        """4 -> 120 -> 84 -> 2, as the peers have it."""

        def __init__(self) -> None:
            super().__init__()
            from torch import nn

            self.net = nn.Sequential(nn.Linear(4, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 2))

        def forward(self, x: Any) -> Any:
            return self.net(x)

    def made(n: int, env: Any) -> tuple[Any, Any, int, Any, float | None]:
        """Model, source, training steps, optimiser and the clip of gradients for n environment steps."""
        if many:
            steps = max(1, n // 1024) * 16
            source = rollouts(env, 16, estimate=GAE(0.98, 0.8), epochs=4, pieces=4, finish=standard)
            return ppo(env, until=steps), source, steps, AdamW(5e-3, eps=1e-5, schedule=Linear(flat=0.0)), 0.5
        if spec.startswith("ppo"):
            c = SPECS[spec]["config"]
            whole, cartpole = c["envs"] * c["n_steps"], spec == "ppo-cartpole"
            pieces = whole // c["batch"]
            steps = max(1, n // whole) * c["epochs"] * pieces
            model = (
                ppo(env, until=steps, value=1.0)
                if cartpole
                else ppo(env, value_clip=0.2, observations=True, returns=True)
            )
            estimate = GAE(0.98, 0.8) if cartpole else GAE(0.99, 0.95)
            source = rollouts(env, c["n_steps"], estimate=estimate, epochs=c["epochs"], pieces=pieces, finish=standard)
            return model, source, steps, AdamW(1e-3 if cartpole else 3e-4, eps=1e-5, schedule=Linear(flat=0.0)), 0.5
        if spec == "dqn-cartpole":
            net = DQN(Pyramid(), 2, double=False, copy_every=50, explore=max(1, n // 100))
            source = Replay(env, capacity=10_000, batch=128, warmup=min(1000, n // 2), every=10)
            return net, source, max(1, (n - min(1000, n // 2)) // 10), AdamW(2.5e-4), 10.0
        law = SquashedNormal(1, -2.0, 2.0)
        sac = SAC(MLP(3, 2, 256, 2, activation="relu"), Ensemble(2, 4), law, target_entropy=-1.0)
        source = Replay(env, capacity=10_000, batch=256, warmup=min(100, n // 2))
        return sac, source, max(1, n - min(100, n // 2)), AdamW(1e-3), None

    seed = [0]

    def run(n: int) -> int:
        seed[0] += 1
        TRACK.begin()
        import torch

        torch.manual_seed(seed[0])
        model, source, steps, optim, clip = made(n, environment(spec, tensors, 64 if many else 0))
        trainer = Trainer(steps, optim=optim, clip=clip, log_every=100, save_every=10**9)
        with tempfile.TemporaryDirectory() as folder:
            try:
                trainer.fit(model, Data(source), run=folder, seed=seed[0], device="cpu", voice=Voice())
            finally:
                TRACK.steps = source.env_steps
        return int(source.env_steps)

    return run


# ---- the check of PPO ----------------------------------------------------------------------------------------------


def given() -> dict[str, Any]:
    """Weights of actor and critic, layer by layer, and a batch of 256, the same for all."""
    import numpy as np

    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype("float32")  # noqa: E731
    nets = [[(0.4 * draw(a, b), 0.1 * draw(a)) for b, a in ((4, 64), (64, 64), (64, out))] for out in (2, 1)]
    batch = {"obs": draw(256, 4), "action": rng.integers(0, 2, 256), "advantage": draw(256), "return": draw(256)}
    return {"nets": nets, "batch": batch | {"logp": -0.7 + 0.3 * draw(256), "value": draw(256)}}


def put(layers: Any, weights: Any) -> None:
    """Copy weights into linear layers."""
    import torch

    with torch.no_grad():
        for layer, (w, b) in zip(layers, weights, strict=True):
            layer.weight.copy_(torch.from_numpy(w))
            layer.bias.copy_(torch.from_numpy(b))


def fingerprint(actor: Any, critic: Any) -> Check:
    """The weights after the update, thinned out."""
    nets = {"actor": actor, "critic": critic}
    return {
        f"{name} {i}": layer.weight.detach().flatten()[::17].tolist() + layer.bias.detach()[::7].tolist()
        for name, layers in nets.items()
        for i, layer in enumerate(layers)
    }


def our_update() -> Check:
    import torch

    from morphogen.core import keys
    from morphogen.experiment import Data
    from morphogen.hooks import Voice
    from morphogen.optim import AdamW
    from morphogen.rl.env import CartPole, Simulated
    from morphogen.rl.presets import ppo
    from morphogen.rl.rollouts import standard
    from morphogen.spec import Remembers
    from morphogen.train import Trainer

    g = given()
    b = {k: torch.from_numpy(v) for k, v in g["batch"].items()}
    index = torch.arange(256)
    info = {"logp": b.pop("logp"), "value": b.pop("value")}
    said = {"info": info, "score": torch.zeros(256), "explained": torch.zeros(256), "epoch": torch.zeros(256)}
    batch = standard({**b, **said, "index": index, "key": keys(index)})

    class Once(Remembers):
        """A source of this batch."""

        def start(self, place: Any) -> None: ...

        def next(self, actor: Any, heard: Any) -> Mapping[str, Any]:
            return batch

        def state(self) -> dict[str, Any]:
            return {}

        def restore(self, state: Any) -> None: ...

    model = ppo(Simulated(CartPole(), 1), value=1.0)
    nets = [[net.first, *net.hidden, net.last] for net in (model.actor, model.critic)]
    for layers, weights in zip(nets, g["nets"], strict=True):
        put(layers, weights)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(1, optim=AdamW(1e-3, eps=1e-5), clip=0.5)
        trainer.fit(model, Data(Once()), run=folder, device="cpu", voice=Voice())
    return fingerprint(*nets)


def sb3_update() -> Check:
    """stable-baselines3's own `train` on a buffer that holds the batch, as the whole of a stretch."""
    import stable_baselines3 as sb
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.logger import Logger

    g = given()
    b = g["batch"]
    made = sb.PPO("MlpPolicy", make_vec_env("CartPole-v1", 8), **{**ZOO, "n_epochs": 1}, learning_rate=1e-3)
    policy = made.policy
    mind = policy.mlp_extractor
    nets = [
        [mind.policy_net[0], mind.policy_net[2], policy.action_net],
        [mind.value_net[0], mind.value_net[2], policy.value_net],
    ]
    for layers, weights in zip(nets, g["nets"], strict=True):
        put(layers, weights)
    made.set_logger(Logger(None, []))
    made._current_progress_remaining = 1.0
    buffer = made.rollout_buffer
    buffer.reset()
    buffer.observations[:] = b["obs"].reshape(32, 8, 4)
    buffer.actions[:] = b["action"].reshape(32, 8, 1)
    for name, key in (("advantages", "advantage"), ("returns", "return"), ("log_probs", "logp"), ("values", "value")):
        getattr(buffer, name)[:] = b[key].reshape(32, 8)
    buffer.full = True
    made.train()
    return fingerprint(*nets)


# ---- a bare loop of PPO --------------------------------------------------------------------------------------------


def layers_of(out: int) -> Any:
    from torch import nn

    net = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, out))
    for layer, gain in zip(net[::2], (2**0.5, 2**0.5, 0.01 if out == 2 else 1.0), strict=True):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return net


def bare_update(actor: Any, critic: Any, opt: Any, b: Mapping[str, Any], clip: float = 0.2) -> None:
    import torch

    logits, value = actor(b["obs"]).log_softmax(1), critic(b["obs"])[:, 0]
    logp = logits.gather(1, b["action"][:, None])[:, 0]
    ratio = (logp - b["logp"]).exp()
    adv = (b["advantage"] - b["advantage"].mean()) / (b["advantage"].std() + 1e-8)
    policy = -torch.min(ratio * adv, ratio.clamp(1 - clip, 1 + clip) * adv).mean()
    loss = policy + 0.5 * (value - b["return"]).square().mean()
    opt.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([*actor.parameters(), *critic.parameters()], 0.5)
    opt.step()


def bare_check() -> Check:
    import torch

    g = given()
    actor, critic = layers_of(2), layers_of(1)
    put(actor[::2], g["nets"][0])
    put(critic[::2], g["nets"][1])
    opt = torch.optim.Adam([*actor.parameters(), *critic.parameters()], 1e-3, eps=1e-5)
    bare_update(actor, critic, opt, {k: torch.from_numpy(v) for k, v in g["batch"].items()})
    return fingerprint(actor[::2], critic[::2])


def bare(n: int) -> int:
    """PPO on CartPole as one writes it: 8 environments, 32 steps, 20 updates of all 256."""
    import gymnasium as gym
    import torch

    envs = gym.vector.SyncVectorEnv(
        [lambda: gym.make("CartPole-v1")] * 8, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP
    )
    actor, critic = layers_of(2), layers_of(1)
    opt = torch.optim.Adam([*actor.parameters(), *critic.parameters()], 1e-3, eps=1e-5)
    obs = torch.from_numpy(envs.reset(seed=0)[0])
    rows: dict[str, Any] = {k: torch.zeros(32, 8) for k in ("logp", "value", "reward", "over")}
    rows |= {"obs": torch.zeros(32, 8, 4), "action": torch.zeros(32, 8, dtype=torch.int64)}
    rounds = max(1, n // 256)
    for k in range(rounds):
        left = 1 - k / rounds
        opt.param_groups[0]["lr"] = 1e-3 * left
        with torch.no_grad():
            for t in range(32):
                law = torch.distributions.Categorical(logits=actor(obs))
                action = law.sample()
                seen, reward, ended, cut, _ = envs.step(action.numpy())
                said = {"obs": obs, "action": action, "logp": law.log_prob(action), "value": critic(obs)[:, 0]}
                said |= {"reward": torch.from_numpy(reward), "over": torch.from_numpy((ended | cut).astype("float32"))}
                for name, v in said.items():
                    rows[name][t] = v
                obs = torch.from_numpy(seen)
            after, lasting, advantage = critic(obs)[:, 0], torch.zeros(8), torch.zeros(32, 8)
            for t in reversed(range(32)):
                on = 1 - rows["over"][t]
                lasting = rows["reward"][t] + 0.98 * after * on - rows["value"][t] + 0.98 * 0.8 * on * lasting
                advantage[t], after = lasting, rows["value"][t]
        batch = {k: v.flatten(0, 1) for k, v in rows.items()} | {"advantage": advantage.flatten()}
        batch["return"] = batch["advantage"] + batch["value"]
        for _ in range(20):
            bare_update(actor, critic, opt, batch, 0.2 * left)
    return rounds * 256


# ---- peers ---------------------------------------------------------------------------------------------------------


def shim() -> None:
    """Give today's gymnasium what CleanRL's scripts expect of an older one."""
    import gymnasium as gym
    from gymnasium.vector import AutoresetMode

    if gym.vector.SyncVectorEnv.__module__ == __name__:
        return

    class Sync(gym.vector.SyncVectorEnv):  # type: ignore[misc]
        def __init__(self, env_fns: Any, **options: Any) -> None:
            super().__init__(env_fns, autoreset_mode=AutoresetMode.SAME_STEP, **options)

        def step(self, actions: Any) -> Any:
            seen, reward, ended, cut, info = super().step(actions)
            TRACK.steps += self.num_envs
            if "final_info" in info:
                final = info.pop("final_info")
                if "episode" in final:
                    for i, over in enumerate(final["_episode"]):
                        if over:
                            TRACK.note(final["episode"]["r"][i])
                if "final_obs" in info:
                    info["final_observation"] = info["final_obs"]
            return seen, reward, ended, cut, info

    class Transformed(gym.wrappers.TransformObservation):  # type: ignore[misc]
        def __init__(self, env: Any, func: Any, observation_space: Any = None) -> None:
            super().__init__(env, func, observation_space or env.observation_space)

    gym.vector.SyncVectorEnv = Sync
    gym.wrappers.TransformObservation = Transformed


def cleanrl(spec: str) -> tuple[Run, dict[str, Any]]:
    """CleanRL's script; and what to note of it."""
    root = harness.checkout("cleanrl")
    shim()
    sys.path.insert(0, root)
    import torch
    import torch.utils.tensorboard  # imports are not what is timed

    os.chdir(tempfile.mkdtemp())
    script, flags = SPECS[spec]["cleanrl"]
    path, seed = os.path.join(root, "cleanrl", script), [0]

    def run(n: int) -> int:
        seed[0] += 1
        TRACK.begin()
        named = ["--env-id", SPECS[spec]["env"], "--total-timesteps", str(n), "--no-cuda", "--seed", str(seed[0])]
        sys.argv = [path, *named, *flags]
        before = torch.are_deterministic_algorithms_enabled()
        try:
            runpy.run_path(path, run_name="__main__")
        finally:
            torch.use_deterministic_algorithms(before)
        return TRACK.steps

    return run, {"commit": harness.git_version(root)}


def sb3(spec: str) -> Run:
    """stable-baselines3's training."""
    import stable_baselines3 as sb
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    class Watch(BaseCallback):  # type: ignore[misc]
        def _on_step(self) -> bool:
            TRACK.steps = self.num_timesteps
            for info in self.locals["infos"]:
                if "episode" in info:
                    TRACK.note(info["episode"]["r"])
            return True

    name, envs, options = SPECS[spec]["sb3"]
    seed = [0]

    def run(n: int) -> int:
        seed[0] += 1
        TRACK.begin()
        env = make_vec_env(SPECS[spec]["env"], n_envs=envs, seed=seed[0])
        model = getattr(sb, name)("MlpPolicy", env, device="cpu", seed=seed[0], **options())
        model.learn(n, callback=Watch())
        return int(model.num_timesteps)

    return run


def trained(lib: str, spec: str) -> Work:
    """A side of a piece of work: its training for so many steps, again and again, on one thread."""
    import torch

    torch.set_num_threads(1)
    steps = {"ppo-cartpole": 512, "ppo-halfcheetah": 2048}.get(spec, 60) if smoking() else SPECS[spec]["steps"]
    config = {**SPECS[spec]["config"], "env": SPECS[spec]["env"], "steps": steps, "torch_threads": 1}
    run, check = bare, None
    if lib.startswith("morphogen"):
        run = ours(spec, tensors=lib.endswith("tensor"))
    elif lib == "sb3":
        run = sb3(spec)
    elif lib == "cleanrl":
        run, more = cleanrl(spec)
        config |= more
    if spec == "ppo-cartpole":
        check = {"morphogen": our_update, "morphogen-tensor": our_update, "sb3": sb3_update, "loop": bare_check}.get(
            lib
        )
    versions = (
        "torch",
        "gymnasium",
        *(["stable-baselines3"] if lib == "sb3" else []),
        *(["mujoco"] if "cheetah" in spec else []),
    )
    metric = Metric(lambda: run(steps), "env-steps/s", once=not smoking(), warmup=1)
    return Work({"train": metric}, config, versions, check=check)


# ---- many cart-poles -----------------------------------------------------------------------------------------------


def states() -> tuple[Any, Any]:
    """States (N, 4) about which an episode goes on, and actions (N,), the same for both."""
    import numpy as np

    rng = np.random.default_rng(0)
    return 0.05 * rng.standard_normal((POLES, 4)), rng.integers(0, 2, POLES)


def our_poles() -> Work:
    import torch

    from morphogen.core import Noise, Place
    from morphogen.rl.env import CartPole, Simulated

    torch.set_num_threads(1)
    env, (state, action) = Simulated(CartPole(), POLES), states()
    env.start(Place())
    env.reset()
    actions = [Noise.seeded(t, POLES).integers(2) for t in range(50)]

    def check() -> Check:
        there = CartPole().advance(torch.from_numpy(state), torch.from_numpy(action), Noise.seeded(0, POLES))
        return {"state": there.state.flatten()[::97].tolist(), "reward": [float(there.reward.sum())]}

    def step() -> None:
        for a in actions:
            env.step(a)

    return Work({"step": Metric(step, "env-steps/s", 50 * POLES)}, {"envs": POLES}, ("torch",), check=check)


def their_poles() -> Work:
    """gymnasium's own cart-poles as arrays of numpy, which it steps at once."""
    import gymnasium as gym
    import numpy as np

    state, action = states()
    env = gym.make_vec("CartPole-v1", num_envs=POLES, vectorization_mode="vector_entry_point")
    env.reset(seed=0)
    actions = [np.random.default_rng(t).integers(0, 2, POLES) for t in range(50)]

    def check() -> Check:
        fresh: Any = gym.make_vec("CartPole-v1", num_envs=POLES, vectorization_mode="vector_entry_point").unwrapped
        fresh.reset(seed=0)
        fresh.state = state.T.copy()
        reward = fresh.step(action)[1]
        return {"state": fresh.state.T.flatten()[::97].tolist(), "reward": [float(reward.sum())]}

    def step() -> None:
        for a in actions:
            env.step(a)

    return Work({"step": Metric(step, "env-steps/s", 50 * POLES)}, {"envs": POLES}, ("gymnasium",), check=check)


for spec in SPECS:
    for lib in ("morphogen", "sb3", "cleanrl"):
        small = lib == "morphogen" and "cheetah" not in spec
        REG.add(f"{lib}/{spec}", functools.partial(trained, lib, spec), spec, smoke=small)
REG.add("morphogen-tensor/ppo-cartpole", functools.partial(trained, "morphogen-tensor", "ppo-cartpole"), "ppo-cartpole")
REG.add("loop/ppo-cartpole", functools.partial(trained, "loop", "ppo-cartpole"), "ppo-cartpole", smoke=True)
REG.add("morphogen/cart-poles", our_poles, "cart-poles", smoke=True)
REG.add("gymnasium/cart-poles", their_poles, "cart-poles", smoke=True)
