"""Minibatch optimal transport: exact plans, laws kept, paths that straighten, and a state that resumes to the bit."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import linear_sum_assignment

from morphogen.core import Model, Noise, Place, Source, keys
from morphogen.data import Shuffled, Tensors
from morphogen.data.densities import Fresh, eight_gaussians
from morphogen.diffusion import rectified_flow
from morphogen.diffusion.coupling import OptimalTransport, assign
from morphogen.errors import UserError
from morphogen.experiment import Data
from morphogen.hooks import Voice
from morphogen.nets.mlp import MLP
from morphogen.optim import AdamW
from morphogen.spec import build, spec
from morphogen.train import Trainer

ANYBODY = Model()  # to whom no source here listens


def cost(x, z, order=None):
    z = z if order is None else z[torch.as_tensor(order, dtype=torch.int64)]
    return (x - z).double().square().flatten(1).sum(1).sum().item()


# ---- the plan ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 2, 5, 6])
@pytest.mark.parametrize("shape", [(1,), (2,), (1, 3, 2)])
def test_no_permutation_is_better(n, shape):
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        x, z = 3 * torch.randn(n, *shape, generator=g) + 1, torch.randn(n, *shape, generator=g)
        order = assign(x, z)
        assert sorted(order) == list(range(n))
        best = min(cost(x, z, list(p)) for p in itertools.permutations(range(n)))
        assert cost(x, z, order) == pytest.approx(best, rel=1e-12, abs=1e-12)


def batches(n: int):
    g = torch.Generator().manual_seed(n)
    x = torch.randn(n, 2, generator=g, dtype=torch.float64)
    yield "gaussian", x
    yield "ring", x / x.norm(dim=1, keepdim=True)
    yield "eight", 4 * torch.nn.functional.one_hot(torch.arange(n) % 2, 2) + 0.1 * x
    yield "the same point", torch.ones(n, 2, dtype=torch.float64)
    yield "a few points", x[torch.randint(min(n, 3), (n,), generator=g)]
    yield "far away", x * 1e5 + 1e7
    yield "tiny", x * 1e-9
    yield "outlier", torch.cat((x[1:], x[:1] * 1e6))
    yield "pictures", torch.rand(n, 1, 5, 5, generator=g, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("n", [33, 128, 257])
def test_the_plan_costs_what_scipy_says_of_the_bare_distances(n):
    for name, x in batches(n):
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        order = assign(x, z)
        inner = -(x.flatten(1) @ z.flatten(1).T).numpy()
        rows, columns = linear_sum_assignment(inner)
        best = inner[rows, columns].sum()
        assert sorted(order) == list(range(n)), name
        assert inner[rows, order].sum() == pytest.approx(best, rel=1e-11, abs=1e-11), name
        single = assign(x.float(), z.float())
        if name not in ("far away", "the same point", "a few points"):
            assert cost(x, z, single) == pytest.approx(cost(x, z, columns), rel=1e-5), name


def test_groups_are_paired_each_for_itself():
    g = torch.Generator().manual_seed(3)
    x, z, group = torch.randn(97, 2, generator=g), torch.randn(97, 2, generator=g), torch.arange(97) % 5
    order = torch.as_tensor(assign(x, z, group))
    assert torch.equal(group[order], group)
    for k in range(5):
        mine = group == k
        assert cost(x[mine], z[order][mine]) == pytest.approx(cost(x[mine], z[mine], assign(x[mine], z[mine])))


def test_numbers_that_are_not_finite_are_named():
    x = torch.randn(7, 2)
    x[3, 1], x[5, 0] = torch.nan, torch.inf
    with pytest.raises(UserError, match="2 of the 7 samples"):
        assign(x, torch.randn(7, 2))


# ---- the source ----------------------------------------------------------------------------------------------------


def items(n: int, *shape: int, dtype=torch.float32) -> Tensors:
    return Tensors(torch.randn(n, *shape, generator=torch.Generator().manual_seed(0)).to(dtype))


def take(source: Source, n: int):
    return [source.next(ANYBODY, {}) for _ in range(n)]


def equal(a, b) -> bool:
    return all(torch.equal(a[k], b[k]) for k in ("x", "z", "key", "index"))


@pytest.mark.parametrize(("batch", "shape", "dtype"), [(1, (2,), torch.float32), (7, (1, 3, 3), torch.float64)])
def test_a_batch_brings_its_noise(batch, shape, dtype):
    source = OptimalTransport(Shuffled(items(20, *shape, dtype=dtype), batch))
    assert isinstance(source, Source)
    source.start(Place())
    for got in take(source, 5):
        assert got["z"].shape == got["x"].shape == (batch, *shape)
        assert got["z"].dtype == dtype
        assert cost(got["x"], got["z"]) <= cost(got["x"], got["z"], torch.randperm(batch)) + 1e-9


def test_threads_change_no_batch():
    made = []
    for workers in (0, 1, 3):
        source = OptimalTransport(Shuffled(items(50, 2), 16), workers=workers)
        source.start(Place(seed=4))
        made.append(take(source, 9))
    for other in made[1:]:
        assert all(equal(a, b) for a, b in zip(made[0], other, strict=True))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("make", [lambda: Shuffled(items(50, 2), 16), lambda: Shuffled(items(50, 2), 16, workers=2)])
def test_the_state_is_that_of_the_batch_last_handed_out(workers, make):
    source = OptimalTransport(make(), workers=workers)
    source.start(Place())
    states = [source.state()]
    got = []
    for batch in range(6):
        got += take(source, 1)
        states.append(source.state())
        assert states[-1] == {"position": 16 * (batch + 1)}
    for at in (0, 1, 4):
        again = OptimalTransport(make(), workers=workers)
        again.start(Place())
        again.restore(states[at])
        assert again.state() == states[at]
        assert all(equal(a, b) for a, b in zip(got[at:], take(again, 6 - at), strict=True))
    source.restore(states[2])  # in the middle of plans under way
    assert all(equal(a, b) for a, b in zip(got[2:], take(source, 4), strict=True))


def test_noise_has_streams_of_its_own():
    """z must not be made of the bits that the loss draws its times from, nor repeat when the data does."""
    source = OptimalTransport(Shuffled(Tensors(torch.zeros(512, 2)), 512))
    source.start(Place())
    (batch,) = take(source, 1)
    t = Noise(batch["key"]).uniform()
    drawn = Noise(keys(batch["key"], 0x0791)).normal(2)
    assert torch.equal(drawn.sort(0).values, batch["z"].sort(0).values)
    assert abs(np.corrcoef(drawn.square().sum(1), t)[0, 1]) < 5 / 512**0.5
    assert not torch.isclose(drawn, Noise(batch["key"]).normal(2)).any()
    few = OptimalTransport(Shuffled(items(5, 2), 17))  # each item three times or four in a batch
    few.start(Place())
    assert len({tuple(z.tolist()) for b in take(few, 4) for z in b["z"]}) == 4 * 17


def test_ranks_pair_their_own_pieces():
    for rank in (0, 1):
        source, alone = OptimalTransport(Shuffled(items(40, 2), 20)), Shuffled(items(40, 2), 20)
        for s in (source, alone):
            s.start(Place(rank=rank, ranks=2))
        (got,), expected = take(source, 1), alone.next()
        assert torch.equal(got["x"], expected["x"])
        assert got["z"].shape == (10, 2)


# ---- conditions ----------------------------------------------------------------------------------------------------


def test_within_a_label_noise_stays_standard_normal_and_over_all_it_does_not():
    n = 4000
    label = torch.arange(n) % 3
    x = torch.randn(n, 2) + 5 * torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]])[label]
    data = Tensors(x, {"label": label})
    p, least = {}, {}
    for within in (("label",), ()):
        source = OptimalTransport(Shuffled(data, 100), within=within)
        source.start(Place())
        got = take(source, 40)
        z, mine = torch.cat([b["z"] for b in got]), torch.cat([b["cond"]["label"] for b in got])
        values = [stats.kstest(z[mine == k, d].numpy(), "norm").pvalue for k in range(3) for d in range(2)]
        p[within], least[within] = values, min(values)
    assert least[("label",)] > 1e-4, p
    assert least[()] < 1e-12, p


def test_conditions_are_never_paired_across_silently():
    data = Tensors(torch.randn(30, 2), {"label": torch.arange(30) % 3, "half": torch.arange(30) % 2})
    for within, said in ((None, r"within=\('label',\)"), (("lable",), "did you mean 'label'")):
        source = OptimalTransport(Shuffled(data, 12), within=within)
        source.start(Place())
        with pytest.raises(UserError, match=said):
            source.next(ANYBODY, {})
    both = OptimalTransport(Shuffled(data, 12), within=("label", "half"))
    both.start(Place())
    batch = both.next(ANYBODY, {})
    place = {tuple(z.tolist()): i for i, z in enumerate(Noise(keys(batch["key"], 0x0791)).normal(2))}
    for i, z in enumerate(batch["z"]):
        j = place[tuple(z.tolist())]
        assert batch["cond"]["label"][i] == batch["cond"]["label"][j]
        assert batch["cond"]["half"][i] == batch["cond"]["half"][j]


def test_mistakes_are_sentences(monkeypatch):
    with pytest.raises(UserError, match="workers=-1"):
        OptimalTransport(Shuffled(items(5, 2), 2), workers=-1)
    source = OptimalTransport(Shuffled(Tensors(torch.zeros(9, 2, dtype=torch.int64)), 3))
    source.start(Place())
    with pytest.raises(UserError, match="int64"):
        source.next(ANYBODY, {})
    bad = torch.zeros(9, 2)
    bad[4] = torch.nan
    for workers in (0, 1):
        source = OptimalTransport(Shuffled(Tensors(bad), 9), workers=workers)
        source.start(Place())
        with pytest.raises(UserError, match="1 of the 9 samples"):
            source.next(ANYBODY, {})
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(UserError, match=r"pip install 'morphogen\[ot\]'"):
        OptimalTransport(Shuffled(items(5, 2), 2)).start(Place())


def test_a_run_can_write_it_down():
    graph = spec(OptimalTransport(Fresh(eight_gaussians(), 8), within=("label",), workers=2))
    assert spec(build(graph)) == graph


# ---- what it is for ------------------------------------------------------------------------------------------------


def floor(x: np.ndarray, z: np.ndarray, bins: int = 80) -> float:
    """∫ E Var(u | x_t) dt of u = z − x for pairs in one dimension: what is left of the loss of a perfect net."""
    left = []
    for t in (np.arange(16) + 0.5) / 16:
        place, u = (1 - t) * x + t * z, z - x
        order = np.argsort(place)
        for cell in np.array_split(order, bins):  # a line in each cell: the slope of the mean is no variance
            fit = np.polyfit(place[cell] - place[cell].mean(), u[cell], 1)
            left.append(np.square(u[cell] - np.polyval(fit, place[cell] - place[cell].mean())).mean())
    return float(np.mean(left))


def test_paths_straighten_as_the_batch_grows():
    """N(0, 1) to N(2, 0.5²): independent pairs leave s π/2 of the loss and cost 5.25; in the limit 0 and 4.25."""
    n, m, s = 16_384, 2.0, 0.5
    g = torch.Generator().manual_seed(0)
    x, z = m + s * torch.randn(n, 1, generator=g), torch.randn(n, 1, generator=g)
    left, costs = [floor(x[:, 0].numpy(), z[:, 0].numpy())], [cost(x, z) / n]
    for batch in (4, 16, 64, 256):
        pairs = zip(x.split(batch), z.split(batch), strict=True)
        paired = torch.cat([b[torch.as_tensor(assign(a, b))] for a, b in pairs])
        assert torch.equal(paired.sort(0).values, z.sort(0).values)  # the law of z is kept, to the number
        left.append(floor(x[:, 0].numpy(), paired[:, 0].numpy()))
        costs.append(cost(x, paired) / n)
    assert left[0] == pytest.approx(s * np.pi / 2, rel=0.03)
    assert costs[0] == pytest.approx(m**2 + 1 + s**2, rel=0.02)
    assert all(b < 0.6 * a for a, b in itertools.pairwise(left)), left
    assert all(b < a for a, b in itertools.pairwise(costs)), costs
    assert left[-1] < 0.02
    assert costs[-1] == pytest.approx(m**2 + (1 - s) ** 2, rel=0.02)


def fit(folder: Path, until: int, steps: int = 7, workers: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = rectified_flow(MLP(2, 2, 16, 2, scalars=("t",), classes=8), (2,), scale=1.0)
    source = OptimalTransport(Fresh(eight_gaussians(), 24), within=("label",), workers=workers)
    trainer = Trainer(steps, optim=AdamW(1e-2), save_every=2, log_every=2)
    return trainer.fit(model, Data(source), run=folder, device="cpu", voice=Voice(), until=until).model.state_dict()


def test_a_run_that_was_stopped_ends_in_the_same_bytes(tmp_path):
    whole = fit(tmp_path / "whole", 7)
    for until in (1, 3, 5):
        fit(tmp_path / "stopped", until)
    stopped = fit(tmp_path / "stopped", 7, workers=2)
    assert all(torch.equal(whole[k], stopped[k]) for k in whole)


ENDLESS = """
import torch
from tests.exact.test_coupling import fit
from pathlib import Path
import sys
print("ready", flush=True)
fit(Path(sys.argv[1]), 10**6, 10**6)
"""


def test_ctrl_c_ends_a_training_at_once(tmp_path):
    command = [sys.executable, "-c", ENDLESS, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "run").glob("checkpoints/0*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, said = process.communicate(timeout=30)
        assert time.monotonic() - began < 10
        assert "Stopped" in said, said
    finally:
        process.kill()
