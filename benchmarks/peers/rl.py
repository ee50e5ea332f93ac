"""PPO, SAC, DQN: env-steps/s, and PPO's time to a mean return of 475 on CartPole (SB3, cleanrl).

cleanrl's scripts are run as they are from a checkout; it pins gymnasium 0.29, so `_shim`
gives today's gymnasium the behaviour those scripts expect (same-step autoreset, the old
info keys, two-argument TransformObservation).
"""
import collections
import functools
import os
import runpy
import sys
import tempfile
import time

import harness
from harness import Metric, Registry, Work

REG = Registry("rl", rounds=5, slice=0.1, budget=420, needs={"": ("gymnasium",), "sb3": ("stable_baselines3",)})


class Solved(Exception):
    pass


TRACK = {"on": False, "ret": collections.deque(maxlen=20), "steps": 0, "best": 0.0}


def _note(ret):
    d = TRACK["ret"]
    d.append(float(ret))
    m = sum(d) / len(d)
    if len(d) == d.maxlen:
        TRACK["best"] = max(TRACK["best"], m)
    if TRACK["on"] and len(d) == d.maxlen and m >= 475:
        raise Solved


def _shim():
    import gymnasium as gym
    from gymnasium.vector import AutoresetMode
    if getattr(gym, "_peers", False):
        return
    gym._peers = True
    Base = gym.vector.SyncVectorEnv

    class Sync(Base):
        def __init__(self, env_fns, **kw):
            super().__init__(env_fns, autoreset_mode=AutoresetMode.SAME_STEP, **kw)

        def step(self, a):
            o, r, te, tr, info = super().step(a)
            TRACK["steps"] += self.num_envs
            if "final_info" in info:
                fin = info.pop("final_info")
                ep = fin.get("episode")
                if ep is not None:
                    for i, ok in enumerate(fin["_episode"]):
                        if ok:
                            _note(ep["r"][i])
                if "final_obs" in info:
                    info["final_observation"] = info["final_obs"]
            return o, r, te, tr, info
    gym.vector.SyncVectorEnv = Sync
    T = gym.wrappers.TransformObservation

    class TO(T):
        def __init__(self, env, func, observation_space=None):
            super().__init__(env, func, observation_space or env.observation_space)
    gym.wrappers.TransformObservation = TO


def cleanrl(script, args, steps, env):
    root = harness.checkout("cleanrl")
    _shim()
    sys.path.insert(0, root)
    import torch.utils.tensorboard  # noqa: F401  (imports are not what is timed)
    os.chdir(tempfile.mkdtemp())
    path = os.path.join(root, "cleanrl", script)
    seed = [0]

    def run(n=steps):
        seed[0] += 1
        import torch
        sys.argv = [path, "--env-id", env, "--total-timesteps", str(n), "--no-cuda", "--seed", str(seed[0])] + args
        TRACK["steps"] = 0
        TRACK["ret"].clear()
        dt = torch.are_deterministic_algorithms_enabled()
        try:
            runpy.run_path(path, run_name="__main__")
        finally:
            torch.use_deterministic_algorithms(dt)
        return TRACK["steps"]
    return run, {"commit": harness.git_version(root)}


def sb3(algo, env, n_envs, steps, kw):
    import stable_baselines3 as S
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.callbacks import BaseCallback

    class Watch(BaseCallback):
        def __init__(self):
            super().__init__()

        def _on_step(self):
            TRACK["steps"] = self.num_timesteps
            for i in self.locals["infos"]:
                if "episode" in i:
                    _note(i["episode"]["r"])
            return True
    A = getattr(S, algo)
    seed = [0]

    def run(n=steps):
        seed[0] += 1
        TRACK["ret"].clear()
        m = A("MlpPolicy", make_vec_env(env, n_envs=n_envs, seed=seed[0]), device="cpu", seed=seed[0], **kw)
        m.learn(n, callback=Watch())
        TRACK["steps"] = m.num_timesteps
        return m.num_timesteps
    return run, {}


# CartPole PPO: the same numbers for both (rl-zoo's tuned ones)
ZOO = dict(n_steps=32, batch_size=256, n_epochs=20, gamma=0.98, gae_lambda=0.8, ent_coef=0.0)
ZOO_C = ["--num-envs", "8", "--num-steps", "32", "--num-minibatches", "1", "--update-epochs", "20", "--gamma", "0.98",
         "--gae-lambda", "0.8", "--learning-rate", "1e-3", "--ent-coef", "0.0"]


def lin(v):
    return lambda p: p * v


SPECS = {
    "ppo-cartpole": dict(env="CartPole-v1", steps=8192, vers=(), cfg=dict(envs=8, n_steps=32, batch=256, epochs=20),
                         sb3=("PPO", 8, lambda: dict(ZOO, learning_rate=lin(1e-3), clip_range=lin(0.2))),
                         cleanrl=("ppo.py", ZOO_C)),
    "sac-pendulum": dict(env="Pendulum-v1", steps=500, cfg=dict(envs=1, batch=256, net=[256, 256], learning_starts=100,
                                                               train_freq=1, gradient_steps=1),
                         sb3=("SAC", 1, lambda: dict(learning_starts=100, batch_size=256, learning_rate=1e-3)),
                         cleanrl=("sac_continuous_action.py", ["--learning-starts", "100", "--batch-size", "256"])),
    "dqn-cartpole": dict(env="CartPole-v1", steps=8000,
                         cfg=dict(envs=1, batch=128, learning_starts=1000, train_freq=10, gradient_steps=1),
                         sb3=("DQN", 1, lambda: dict(learning_starts=1000, batch_size=128, train_freq=10, gradient_steps=1,
                                                     target_update_interval=500, buffer_size=10000, learning_rate=2.5e-4,
                                                     policy_kwargs=dict(net_arch=[120, 84]))),
                         cleanrl=("dqn.py", ["--learning-starts", "1000", "--batch-size", "128", "--train-frequency", "10"])),
    "ppo-halfcheetah": dict(env="HalfCheetah-v5", steps=4096, cfg=dict(envs=1, n_steps=2048, batch=64, epochs=10),
                            sb3=("PPO", 1, lambda: dict(n_steps=2048, batch_size=64, n_epochs=10)),
                            cleanrl=("ppo_continuous_action.py", ["--num-envs", "1"])),
}


def build(lib, spec, threads=None):
    import torch
    s = SPECS[spec]
    if threads:
        torch.set_num_threads(threads)
    cfg = dict(s["cfg"], env=s["env"], steps=s["steps"], torch_threads=threads or harness.THREADS)
    if lib == "sb3":
        a, n, kw = s["sb3"]
        run, ex = sb3(a, s["env"], n, s["steps"], kw())
        v = ("torch", "stable-baselines3", "gymnasium")
    else:
        run, ex = cleanrl(s["cleanrl"][0], s["cleanrl"][1], s["steps"], s["env"])
        v = ("torch", "gymnasium")
    if "cheetah" in spec:
        v += ("mujoco",)
    return Work({"train": Metric(run, "env-steps/s", once=True, warmup=1)}, dict(cfg, **ex), v)


def build_solve(lib, threads=None):
    """Seconds of training until the mean return of the last 20 episodes is 475 (cap 200,000 steps)."""
    import torch
    s = SPECS["ppo-cartpole"]
    if threads:
        torch.set_num_threads(threads)
    cap = 100_000
    if lib == "sb3":
        run, ex = sb3("PPO", s["env"], 8, s["steps"], s["sb3"][2]())
        v = ("torch", "stable-baselines3", "gymnasium")
    else:
        run, ex = cleanrl("ppo.py", ZOO_C, s["steps"], s["env"])
        v = ("torch", "gymnasium")
    run(2048)
    log = []

    def solve():
        TRACK["on"], t = True, time.perf_counter()
        TRACK["best"] = 0.0
        try:
            run(cap)
            ok = False
        except Solved:
            ok = True
        finally:
            TRACK["on"] = False
        log.append((ok, round(TRACK["best"], 1), TRACK["steps"], round(time.perf_counter() - t, 2)))
        print("SOLVE", log, file=sys.stderr, flush=True)
        if not ok:
            raise RuntimeError(f"not solved in {cap} steps, best mean of 20 was {TRACK['best']:.0f}")
    return Work({"time_to_475": Metric(solve, "s", kind="time", once=True, warmup=0)},
                dict(s["cfg"], env=s["env"], cap=cap, window=20, torch_threads=threads or harness.THREADS, **ex), v)


for spec in SPECS:
    for lib in ("sb3", "cleanrl"):
        REG.add(f"{lib}/{spec}", functools.partial(build, lib, spec), spec)
        if spec != "ppo-halfcheetah":
            REG.add(f"{lib}/{spec}/1-thread", functools.partial(build, lib, spec, 1), spec)
for lib in ("sb3", "cleanrl"):
    REG.add(f"{lib}/ppo-cartpole-solve/1-thread", functools.partial(build_solve, lib, 1), "ppo-cartpole-solve")
