"""Environments of tensors: gymnasium's physics step by step, resets and cuts, exact resume, games with answers."""

from __future__ import annotations

import json
import math
from collections import deque
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from morphogen.checkpoint import pack, unpack
from morphogen.core import CannotRestore, Noise, Place
from morphogen.errors import UserError
from morphogen.rl.env import (
    Box,
    CartPole,
    Catch,
    Choice,
    Env,
    Gymnasium,
    LinearQuadratic,
    Pendulum,
    PointMass,
    PointMaze,
    Simulated,
    Simulator,
)
from morphogen.rl.tabular import frozen_lake, grid4, walk
from morphogen.spec import build, spec

TASKS = {
    "cart-pole": lambda: CartPole(limit=6),
    "pendulum": lambda: Pendulum(limit=6),
    "catch": lambda: Catch(4),
    "mass": lambda: PointMass(limit=6),
    "maze": lambda: PointMaze(limit=6),
    "linear": lambda: LinearQuadratic(sigma=0.1, limit=6),
    "grid": lambda: grid4(limit=6),
}


def acts(task, n, seed):
    noise = Noise.seeded(seed, n)
    if isinstance(task.action, Choice):
        return noise.integers(task.action.n)
    return 3 * noise.normal(*task.action.shape)


def started(task, envs, **place):
    env = Simulated(task, envs)
    env.start(Place(seed=3, **place))
    return env


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# ---- gymnasium's physics -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("name", "task"), [("CartPole-v1", CartPole()), ("Pendulum-v1", Pendulum())])
def test_physics_are_gymnasiums(name, task):
    """400 random states and actions, beyond the bounds too: the next state, the reward and the end are the same."""
    gym = pytest.importorskip("gymnasium")
    env = gym.make(name).unwrapped
    env.reset(seed=0)
    width = {"CartPole-v1": [2.6, 3, 0.25, 3], "Pendulum-v1": [7, 8]}[name]
    state = (2 * Noise.seeded(1, 400).uniform(len(width)) - 1) * torch.tensor(width)
    action = acts(task, 400, 2)
    made = task.advance(state, action, Noise.seeded(3, 400))
    seen = task.observe(made.state)
    ends = 0
    for i in range(400):
        env.state = np.array(state[i].tolist())
        env.steps_beyond_terminated = None  # each state by itself: no reward is kept back as after an end
        obs, reward, terminated, _, _ = env.step(action[i].numpy())
        assert np.asarray(env.state) == pytest.approx(made.state[i].numpy(), abs=1e-12)
        assert obs == pytest.approx(seen[i].numpy(), abs=1e-6)  # gymnasium shows single precision
        assert float(reward) == pytest.approx(made.reward[i].item(), abs=1e-12)
        assert terminated == bool(made.terminated[i])
        ends += terminated
    assert ends == int(made.terminated.sum())
    assert name == "Pendulum-v1" or 50 < ends < 350


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("name", "task"), [("CartPole-v1", CartPole()), ("Pendulum-v1", Pendulum())])
def test_whole_episodes_are_gymnasiums(name, task):
    """From gymnasium's own first state through an episode of random actions to its end, limit included."""
    gym = pytest.importorskip("gymnasium")
    env = gym.make(name)
    for seed in range(3):
        env.reset(seed=seed)
        state = torch.tensor(np.array([env.unwrapped.state], dtype=np.float64))
        low, high = task.begin(Noise.seeded(0, 5000)).aminmax(dim=0)
        assert bool(((state[0] >= low * 1.05 - 0.01) & (state[0] <= high * 1.05 + 0.01)).all())
        steps = 0
        while True:
            action = acts(task, 1, 1000 * seed + steps)
            state, reward, over = task.advance(state, action, Noise.seeded(0, 1))
            obs, theirs, terminated, truncated, _ = env.step(action[0].numpy())
            steps += 1
            assert obs == pytest.approx(task.observe(state)[0].numpy(), abs=1e-5)
            assert float(theirs) == pytest.approx(reward.item(), abs=1e-6)
            assert terminated == bool(over)
            if terminated or truncated:
                assert truncated == (steps == task.limit)
                break
        assert name == "CartPole-v1" or steps == 200


# ---- what every task keeps to --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_an_environment_is_the_same_in_any_number_on_any_rank(name):
    """Five environments alone, the first two of them, and the five as ranks: equal bits, resets included."""
    whole, some = started(TASKS[name](), 6), started(TASKS[name](), 2)
    ranks = [started(TASKS[name](), 6, rank=r, ranks=3) for r in range(3)]
    seen = [e.reset() for e in (whole, some, *ranks)]
    ends = 0
    for step in range(20):
        assert torch.equal(seen[0][:2], seen[1])
        assert torch.equal(seen[0], torch.cat(seen[2:]))
        action = acts(whole.task, 6, step)
        pieces = [action, action[:2], *action.split(2)]
        steps = [e.step(a) for e, a in zip((whole, some, *ranks), pieces, strict=True)]
        for field in ("reward", "terminated", "truncated", "final"):
            assert torch.equal(getattr(steps[0], field), torch.cat([getattr(s, field) for s in steps[2:]]))
        seen = [s.obs for s in steps]
        ends += int((steps[0].terminated | steps[0].truncated).sum())
    assert ends >= 6
    with pytest.raises(UserError, match="do not divide"):
        started(TASKS[name](), 7, ranks=2)


@pytest.mark.parametrize("name", TASKS)
def test_a_saved_state_goes_on_with_the_same_bits(name):
    env = started(TASKS[name](), 5)
    env.reset()
    for step in range(4):
        env.step(acts(env.task, 5, step))
    state = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in env.state().items()}
    after = [env.step(acts(env.task, 5, step)) for step in range(4, 16)]
    again = started(build(spec(TASKS[name]())), 5)
    again.restore(state)
    for step, expected in enumerate(after, 4):
        for a, b in zip(again.step(acts(env.task, 5, step)), expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", TASKS)
def test_episodes_end_and_begin_as_agreed(name):
    """A cut comes exactly at the limit, never with a termination; what was seen last is kept apart from what is new."""
    task, limit = TASKS[name](), 6
    env = started(task, 64)
    assert isinstance(env, Env)
    age, obs, cuts = torch.zeros(64), env.reset(), 0
    for step in range(40):
        there = task.advance(env.look(), acts(task, 64, step), Noise.seeded(0, 64))
        made = env.step(acts(task, 64, step))
        age += 1
        ended = made.terminated | made.truncated
        assert not bool((made.terminated & made.truncated).any())
        if task.limit is not None:
            assert torch.equal(made.truncated, (age == limit) & ~made.terminated)
        if name not in ("linear", "grid"):  # whose steps are random
            assert torch.equal(made.final, task.observe(there.state))
        rows = ended.view(-1, *[1] * (obs.ndim - 1)).expand_as(made.obs)
        assert torch.equal(made.obs[~rows], made.final[~rows])
        fresh = task.observe(env.look())
        assert torch.equal(made.obs, fresh)
        age[ended] = 0
        cuts += int(made.truncated.sum())
        obs = made.obs
    assert cuts or task.limit is None
    assert task.draw(env.look()[0]).size[0] >= 160


def test_two_seeds_and_two_environments_differ():
    env = started(CartPole(), 2)
    first = env.reset()
    other = Simulated(CartPole(), 2)
    other.start(Place(seed=4))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, other.reset())
    with pytest.raises(UserError, match="1 or more"):
        Simulated(CartPole(), 0)
    with pytest.raises(UserError, match="low < high"):
        Box((1,), 1.0, 1.0)
    with pytest.raises(UserError, match="1 or more"):
        Choice(0)


# ---- games with known answers --------------------------------------------------------------------------------------


def test_catch_is_won_by_going_to_the_ball_and_chance_wins_as_often_as_chance():
    env = started(Catch(), 500)
    env.reset()
    returns = []
    for _ in range(9):
        _, ball, paddle = env.look().unbind(1)
        made = env.step((ball - paddle).sign() + 1)
        returns.append(made.reward)
    assert bool((torch.stack(returns).sum(0) == 1).all())
    assert bool(made.terminated.all())
    pixels = env.task.observe(env.look())
    assert pixels.shape == (500, 1, 10, 10)
    assert pixels.sum().item() == 1000  # a ball and a paddle in each
    stay = [env.step(torch.ones(500, dtype=torch.int64)).reward for _ in range(9)]
    assert abs(float((torch.stack(stay).sum(0) == 1).float().mean()) - 0.1) < 4 * 0.3 / 500**0.5


def test_the_maze_keeps_its_walls_and_is_solved_by_its_shortest_way():
    task = PointMaze()
    env = started(task, 200)
    env.reset()
    for step in range(150):  # nobody gets through a wall, and 1 is paid at the goal alone
        made = env.step(acts(task, 200, step))
        x, y = made.final[:, 0].long(), made.final[:, 1].long()
        assert not bool(task.walls[y, x].any())
        there = (x == task.goal[0]) & (y == task.goal[1])
        assert torch.equal(made.reward == 1, there)
        assert torch.equal(made.terminated, there)
    came, queue = {task.goal: None}, deque([task.goal])
    while queue:
        c, r = queue.popleft()
        for to in ((c + 1, r), (c - 1, r), (c, r + 1), (c, r - 1)):
            if to not in came and not bool(task.walls[to[1], to[0]]):
                came[to] = (c, r)
                queue.append(to)
    state, steps = task.begin(Noise.seeded(0, 1)), 0
    route = [(int(state[0, 0]), int(state[0, 1]))]
    while route[-1] != task.goal:
        route.append(came[route[-1]])
    for _, to in pairwise(route):
        middle = torch.tensor(to) + 0.5
        while (state[0] - middle).abs().max() > 0.2:
            state, reward, over = task.advance(state, 4 * (middle - state), Noise.seeded(0, 1))
            steps += 1
            assert steps < 100
            if bool(over):
                break
    assert reward.item() == 1
    assert steps >= 4 * (len(route) - 2)
    for wrong in (("###", "#G ", "###"), ("###", "# #", "###"), ("####", "#G#", "####"), ("###", "#G#", "###")):
        with pytest.raises(UserError, match="maze"):
            PointMaze(wrong)


@pytest.mark.usefixtures("double")
def test_a_mass_without_force_moves_evenly_and_its_cost_is_its_state():
    state = torch.tensor([[1.0, -2.0, 0.5, 0.0]])
    made = PointMass().advance(state, torch.zeros(1, 2), Noise.seeded(0, 1))
    torch.testing.assert_close(made.state, torch.tensor([[1.05, -2.0, 0.5, 0.0]]))
    assert made.reward.item() == pytest.approx(-(5 + 0.1 * 0.25))
    made = PointMass().advance(state, torch.tensor([[7.0, -1.0]]), Noise.seeded(0, 1))  # a force of 7 is one of 1
    torch.testing.assert_close(made.state, torch.tensor([[1.06, -2.01, 0.6, -0.1]]))
    assert made.reward.item() == pytest.approx(-(5.025 + 0.02))


@pytest.mark.usefixtures("double")
def test_a_linear_system_is_one():
    task = LinearQuadratic(sigma=0.0)
    x, u = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])
    made = task.advance(x, u, Noise.seeded(0, 1))
    torch.testing.assert_close(made.state, torch.tensor([[1.2, 2.3]]))
    assert made.reward.item() == pytest.approx(-(5 + 0.9))
    spread = LinearQuadratic(sigma=0.5).advance(x.expand(20_000, 2), u.expand(20_000, 1), Noise.seeded(0, 20_000))
    assert spread.state.std(0).tolist() == pytest.approx([0.5, 0.5], rel=0.03)
    with pytest.raises(UserError, match="2 × 2"):
        LinearQuadratic(q=((1.0,),))


# ---- those of others -----------------------------------------------------------------------------------------------


def test_gymnasium_behind_the_protocol():
    """Equal to gymnasium driven by hand, over ends; integers stay integers; its state cannot be saved."""
    gym = pytest.importorskip("gymnasium")
    env = Gymnasium("CartPole-v1", 3)
    assert isinstance(env, Env)
    assert (env.action.n, env.observation.shape, env.limit) == (2, (4,), 500)
    env.start(Place(seed=1))
    own = [gym.make("CartPole-v1") for _ in range(3)]
    theirs = [e.reset(seed=s)[0] for e, s in zip(own, env._seeds, strict=True)]
    obs, ends = env.reset(), 0
    for step in range(60):
        assert torch.equal(obs, torch.tensor(np.stack(theirs)))
        action = Noise.seeded(step, 3).integers(2)
        made = env.step(action)
        obs = made.obs
        for i, e in enumerate(own):
            seen, reward, terminated, truncated, _ = e.step(int(action[i]))
            assert torch.equal(made.final[i], torch.tensor(seen))
            assert (made.reward[i], made.terminated[i], made.truncated[i]) == (reward, terminated, truncated)
            ends += terminated
            theirs[i] = e.reset()[0] if terminated or truncated else seen
    assert ends >= 3
    assert spec(build(spec(env))) == spec(env)
    lake = Gymnasium("FrozenLake-v1", 2, {"is_slippery": False})
    lake.start(Place())
    assert lake.reset().tolist() == [0, 0]
    assert lake.step(torch.tensor([2, 1])).obs.tolist() == [1, 4]
    swing = Gymnasium("Pendulum-v1", 2)
    swing.start(Place())
    swing.reset()
    assert swing.step(torch.full((2, 1), 100.0)).reward.shape == (2,)
    with pytest.raises(UserError, match="NoSuchThing"):
        Gymnasium("NoSuchThing-v9", 1)
    with pytest.raises(UserError, match="do not divide"):
        env.start(Place(ranks=2))


GYMS = [
    "CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0",
    "FrozenLake-v1", "CliffWalking-v1", "Taxi-v4", "Blackjack-v1",
    "HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5", "HumanoidStandup-v5", "Swimmer-v5",
    "Reacher-v5", "Pusher-v5", "InvertedPendulum-v5", "InvertedDoublePendulum-v5",
]  # fmt: skip


def made(name, envs, **options):
    """Gymnasium's environments; skipped where what they need is not here."""
    gym = pytest.importorskip("gymnasium")
    if "-v5" in name:
        pytest.importorskip("mujoco", reason="MuJoCo is not installed: pip install 'morphogen[rl]'")
    if name not in gym.registry:
        pytest.skip(f"this gymnasium has no {name}")
    try:
        env = Gymnasium(name, envs, options)
    except UserError as reason:
        if "known here" in str(reason):
            pytest.skip(str(reason))
        raise
    env.start(Place(seed=4))
    return env


@pytest.mark.parametrize("name", GYMS)
def test_gymnasiums_state_goes_on_with_the_same_bits(name, tmp_path):
    """Written to a file and read into other environments, in the middle of episodes: over ends and resets after it."""
    env = made(name, 3, max_episode_steps=9)
    env.reset()
    for step in range(4):
        env.step(acts(env, 3, step))
    tensors = {}
    page = json.dumps(pack(env.state(), tensors))
    save_file(tensors, tmp_path / "state.safetensors")
    after = [env.step(acts(env, 3, step)) for step in range(4, 18)]
    again = made(name, 3, max_episode_steps=9)
    again.restore(unpack(json.loads(page), load_file(tmp_path / "state.safetensors")))
    for step, expected in enumerate(after, 4):
        for field, a, b in zip(expected._fields, again.step(acts(env, 3, step)), expected, strict=True):
            assert torch.equal(a, b), (step, field)
    assert sum(int((s.terminated | s.truncated).sum()) for s in after) >= 3


@pytest.mark.parametrize("name", ["LunarLander-v3", "CarRacing-v3", "BipedalWalker-v3"])
def test_box2ds_state_cannot_be_saved_and_that_is_said(name):
    pytest.importorskip("Box2D", reason="Box2D is not installed: pip install 'morphogen[rl]'")
    env = made(name, 1)
    with pytest.raises(CannotRestore, match="Box2D's contacts cannot be saved"):
        env.state()


def test_gymnasiums_limits_and_wrappers_are_kept():
    """The limit is counted by us; the last observation of a cut episode is not the first of the next."""
    env = made("Pendulum-v1", 2, max_episode_steps=5)
    assert env.limit == 5
    obs = env.reset()
    for step in range(1, 12):
        made_ = env.step(acts(env, 2, step))
        assert made_.truncated.tolist() == [step % 5 == 0] * 2
        assert not bool(made_.terminated.any())
        assert torch.equal(made_.final, made_.obs) == (step % 5 != 0)
        x, y, omega = obs.unbind(1)  # the physics, by our own task
        theta = torch.atan2(y, x)
        there = Pendulum().advance(torch.stack((theta, omega), 1), acts(env, 2, step), Noise.seeded(0, 2)).state
        torch.testing.assert_close(made_.final, Pendulum().observe(there), rtol=1e-4, atol=1e-5)
        obs = made_.obs
    assert Gymnasium("CartPole-v1", 1).rated() == {"solved": 475.0}
    with pytest.raises(UserError, match="cannot make"):
        Gymnasium("CartPole-v1", 1, {"gravity_": 3})


WRONG = {
    "map": ("FrozenLake-v1", {"map_name": "5x5"}, "KeyError: '5x5'"),
    "no steps": ("CartPole-v1", {"max_episode_steps": 0}, "max_episode_steps"),
    "option": ("CartPole-v1", {"gravity_": 3}, "gravity_"),
    "module": ("nomodule:Foo-v0", {}, "nomodule"),
    "no name": ("", {}, "cannot make ''"),
    "mode": ("CartPole-v1", {"render_mode": "rgb_arrays"}, "did you mean 'rgb_array'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_gymnasium_does_not_know_is_a_sentence(case):
    pytest.importorskip("gymnasium")
    name, options, says = WRONG[case]
    with pytest.raises(UserError, match=says) as said:
        Gymnasium(name, 1, options)
    assert "\n" not in str(said.value)


def test_a_name_without_a_version_is_written_with_it():
    pytest.importorskip("gymnasium")
    env = Gymnasium("CartPole", 1)
    assert env.name == build(spec(env)).name == spec(env)["args"]["name"] == "CartPole-v1"


def test_mistakes_of_tasks_are_sentences():
    for limit in (0, -3):
        with pytest.raises(UserError, match=f"limit of {limit} steps"):
            Simulated(CartPole(limit), 2)
    with pytest.raises(UserError, match="no map of FrozenLake '5x5'"):
        frozen_lake("5x5")


def test_bounds_that_differ_are_stretched_to_one_box():
    """A car's steering in [−1, 1] beside gas and brake in [0, 1], and the middle of all is a half of gas."""
    gym = pytest.importorskip("gymnasium")

    class Car(gym.Env):
        observation_space = gym.spaces.Box(-9, 9, (3,))
        action_space = gym.spaces.Box(np.array([-1, 0, 0], np.float32), np.array([1, 1, 2], np.float32))

        def reset(self, *, seed=None, options=None):
            return np.zeros(3, np.float32), {}

        def step(self, action):
            assert self.action_space.contains(action)
            return action, 0.0, False, False, {}

    gym.register("Car-v0", Car)
    try:
        env = Gymnasium("Car-v0", 3)
        env.start(Place())
    finally:
        del gym.registry["Car-v0"]
    assert (env.action.low, env.action.high) == (-1, 2)
    env.reset()
    chosen = torch.tensor([[-1.0, -1, -1], [0.5, 0.5, 0.5], [7, 2, 2]])
    assert env.step(chosen).obs.tolist() == [[-1, 0, 0], [0, 0.5, 1], [1, 1, 2]]


def test_gymnasiums_pictures():
    """Of each environment as the step left it: in the hole where the episode ended, not at the start."""
    pytest.importorskip("pygame", reason="gymnasium draws by pygame: pip install 'morphogen[rl]'")
    env = made("FrozenLake-v1", 2, render_mode="rgb_array", is_slippery=False)
    env.reset()
    first = env.draw(0)
    env.step(torch.tensor([2, 0]))
    stayed = env.draw(1)
    end = env.step(torch.tensor([1, 0]))
    assert end.terminated.tolist() == [True, False]
    assert (np.asarray(env.draw(0)) != np.asarray(first)).any()
    assert (np.asarray(env.draw(1)) == np.asarray(stayed)).all()
    plain = made("FrozenLake-v1", 1)
    plain.reset()
    with pytest.raises(UserError, match="render_mode"):
        plain.draw(0)


class Isaac:
    """A counter that ends at 3 and begins anew by itself, in the manner of simulators on the GPU."""

    def __init__(self, n, named):
        self.at, self.named = torch.zeros(n), named

    def reset(self):
        return {"policy": self.at[:, None].clone()}, {}

    def step(self, action):
        self.at = self.at + action[:, 0]
        over = self.at >= 3
        more = {"final_obs": self.at[:, None].clone()} if self.named else {}
        self.at = self.at * ~over
        return {"policy": self.at[:, None].clone()}, self.at, over & (action[:, 0] > 1), over, more


def telling(n, device, seed):
    return Isaac(n, True)


def silent(n, device, seed):
    return Isaac(n, False)


@pytest.mark.parametrize(("make", "last"), [(telling, 4.0), (silent, 2.0)])
def test_a_simulator_on_the_gpu_behind_the_protocol(make, last):
    env = Simulator(make, 4, Box((1,)), Box((1,)))
    assert isinstance(env, Env)
    env.start(Place(ranks=2))
    assert env.reset().shape == (2, 1)
    env.step(torch.tensor([[2.0], [1.0]]))
    made = env.step(torch.tensor([[2.0], [1.0]]))
    assert made.obs.tolist() == [[0.0], [2.0]]
    assert made.final.tolist() == [[last], [2.0]]
    assert (made.terminated.tolist(), made.truncated.tolist()) == ([True, False], [False, False])
    made = env.step(torch.tensor([[1.0], [1.0]]))
    assert (made.terminated.tolist(), made.truncated.tolist()) == ([False, False], [False, True])
    with pytest.raises(CannotRestore, match="new episodes"):
        env.state()


class Drawing(Isaac):
    """Begins anywhere, by the seed that it was made with."""

    seeds = ()

    def __init__(self, n, device, seed):
        super().__init__(n, False)
        self.noise, Drawing.seeds = Noise.seeded(seed, n), (*Drawing.seeds, seed)

    def reset(self):
        return self.noise.uniform(1)


@pytest.mark.parametrize(
    "make", [lambda: Gymnasium("CartPole-v1", 2), lambda: Simulator(Drawing, 2, Box((1,)), Choice(2))]
)
def test_who_begins_again_begins_other_episodes(make):
    """At each reset, and at each place where a run whose state was lost goes on: the same ones at the same place."""
    pytest.importorskip("gymnasium")
    Drawing.seeds = ()
    envs = [make() for _ in range(4)]
    for env in envs:
        env.start(Place(seed=2))
    assert Drawing.seeds == ()  # a simulator that can be made once only is made when it begins
    seen = [
        envs[0].reset(),
        envs[0].reset(),
        *(env.restore({"anew": n}) for env, n in zip(envs[1:], (0, 7, 7), strict=True)),
    ]
    assert torch.equal(seen[3], seen[4])
    rows = torch.cat(seen[:4])
    assert len(rows.unique(dim=0)) == len(rows) == 8
    assert len(Drawing.seeds) in (0, 4)


class Reused:
    """Counts to 4, pays what it counts, and says all of it in the tensors of the step before."""

    def __init__(self, n, device, seed):
        self.at, self.reward, self.final = torch.zeros(n, 1), torch.zeros(n), torch.zeros(n, 1)
        self.over, self.cut = torch.zeros(2, n, dtype=torch.bool)

    def reset(self):
        return {"policy": self.at.zero_()}

    def step(self, action):
        self.final.copy_(self.at.add_(1))
        self.reward.copy_(self.at[:, 0])
        torch.eq(self.at[:, 0], 4, out=self.over)
        self.at[self.over] = 0
        return {"policy": self.at}, self.reward, self.over, self.cut, {"final_obs": self.final}


def test_what_a_simulator_said_stays_though_it_writes_over_it():
    env = Simulator(Reused, 2, Box((1,)), Choice(2))
    env.start(Place())
    first = env.reset()
    steps = [env.step(torch.zeros(2, dtype=torch.int64)) for _ in range(6)]
    assert first[:, 0].tolist() == [0, 0]
    assert [s.reward[0].item() for s in steps] == [1, 2, 3, 4, 1, 2]
    assert [s.obs[0].item() for s in steps] == [1, 2, 3, 0, 1, 2]
    assert [s.final[0].item() for s in steps] == [1, 2, 3, 4, 1, 2]
    assert [s.terminated[0].item() for s in steps] == [False, False, False, True, False, False]
    assert not any(bool(s.truncated.any()) for s in steps)


def test_an_mdp_walks_as_gymnasium_does():
    """Shares of where a random policy on ice is after 4 steps, of our walk and of gymnasium's own."""
    gym = pytest.importorskip("gymnasium")
    env = started(frozen_lake(limit=None), 4000)
    env.reset()
    alive = torch.ones(4000, dtype=torch.bool)
    for step in range(4):
        made = env.step(Noise.seeded(step, 4000).integers(4))
        alive &= ~made.terminated
    ours = torch.bincount(env.look()[alive], minlength=16) / 4000
    lake, counts, n = gym.make("FrozenLake-v1"), torch.zeros(16), 2000
    actions = Noise.seeded(9, n).integers(4, 4).tolist()
    for i in range(n):
        seen, over = lake.reset(seed=i)[0], False
        for a in actions[i]:
            if not over:
                seen, _, over, _, _ = lake.step(a)
        counts[seen] += not over
    p = counts / n
    assert bool(((ours - p).abs() <= 5 * (p.clamp(min=0.002) * (1 / 4000 + 1 / n)).sqrt()).all())
    assert math.isclose(float(walk(5).begins[2]), 1.0)
