"""Normalizing flows on 6-d tabular data (POWER-like), batch 1024: train steps/s, log_prob/s, samples/s."""
import functools

import harness
from harness import Metric, Registry, Work

D, B, K, HID, BINS = 6, 1024, 5, 128, 8
REG = Registry("flows_train", rounds=5, slice=0.5, budget=400, needs={"zuko": ("zuko",), "nflows": ("nflows",), "normflows": ("normflows",)})


def data():
    import torch
    g = torch.Generator().manual_seed(1)
    a = torch.randn(D, D, generator=g)
    z = torch.randn(65536, D, generator=g)
    x = torch.tanh(z @ a) + 0.3 * torch.randn(65536, D, generator=g)
    return (x - x.mean(0)) / x.std(0)


def zuko_flow(kind):
    import zuko
    h = dict(transforms=K, hidden_features=(HID, HID))
    f = {"nsf-ar": lambda: zuko.flows.NSF(D, bins=BINS, **h),
         "nsf-coupling": lambda: zuko.flows.NSF(D, bins=BINS, passes=2, **h),
         "maf": lambda: zuko.flows.MAF(D, **h),
         "realnvp": lambda: zuko.flows.RealNVP(D, **h)}[kind]()
    return f, lambda x: -f().log_prob(x).mean(), lambda x: f().log_prob(x), lambda n: f().sample((n,)), ("zuko",)


def nflows_flow(kind):
    import torch.nn.functional as F
    from nflows.distributions.normal import StandardNormal
    from nflows.flows.base import Flow
    from nflows.nn.nets import MLP
    from nflows.transforms import (AffineCouplingTransform, CompositeTransform,
                                   MaskedAffineAutoregressiveTransform,
                                   MaskedPiecewiseRationalQuadraticAutoregressiveTransform as ArRQ,
                                   PiecewiseRationalQuadraticCouplingTransform as CRQ, ReversePermutation)
    class Net(MLP):                      # the transforms call their net with a context, MLP takes none
        def forward(self, x, context=None):
            return super().forward(x)
    net = lambda i, o: Net((i,), (o,), [HID, HID], activation=F.relu)
    ts = []
    for k in range(K):
        mask = [(i + k) % 2 for i in range(D)]
        if kind == "nsf-ar":
            ts += [ReversePermutation(D), ArRQ(D, HID, num_bins=BINS, tails="linear", tail_bound=5.0, num_blocks=1,
                                               use_residual_blocks=False)]
        elif kind == "nsf-coupling":
            ts += [CRQ(mask, net, num_bins=BINS, tails="linear", tail_bound=5.0)]
        elif kind == "maf":
            ts += [ReversePermutation(D), MaskedAffineAutoregressiveTransform(D, HID, num_blocks=1,
                                                                              use_residual_blocks=False)]
        else:
            ts += [AffineCouplingTransform(mask, net)]
    f = Flow(CompositeTransform(ts), StandardNormal([D]))
    return f, lambda x: -f.log_prob(x).mean(), lambda x: f.log_prob(x), lambda n: f.sample(n), ("nflows",)


def normflows_flow(kind):
    import normflows as nf
    fl = []
    for k in range(K):
        if kind == "nsf-ar":
            fl += [nf.flows.AutoregressiveRationalQuadraticSpline(D, 1, HID, num_bins=BINS, tail_bound=5),
                   nf.flows.Permute(D, mode="swap")]
        elif kind == "nsf-coupling":
            fl += [nf.flows.CoupledRationalQuadraticSpline(D, 1, HID, num_bins=BINS, tail_bound=5.0,
                                                           reverse_mask=bool(k % 2))]
        elif kind == "maf":
            fl += [nf.flows.MaskedAffineAutoregressive(D, HID, num_blocks=1, use_residual_blocks=False),
                   nf.flows.Permute(D, mode="swap")]
        else:
            fl += [nf.flows.AffineCouplingBlock(nf.nets.MLP([D // 2, HID, HID, D])), nf.flows.Permute(D, mode="swap")]
    f = nf.NormalizingFlow(nf.distributions.DiagGaussian(D), fl)
    return f, lambda x: f.forward_kld(x), lambda x: f.log_prob(x), lambda n: f.sample(n)[0], ("normflows",)


LIBS = {"zuko": zuko_flow, "nflows": nflows_flow, "normflows": normflows_flow}


def build(lib, kind, compile=False):
    import torch
    torch.manual_seed(0)
    f, loss, logp, sample, vers = LIBS[lib](kind)
    x = data()
    opt = torch.optim.Adam(f.parameters(), lr=1e-3)
    i = [0]
    lossc = torch.compile(loss) if compile else loss

    def step():
        i[0] = (i[0] + 1) % (len(x) // B)
        xb = x[i[0] * B:(i[0] + 1) * B]
        opt.zero_grad(set_to_none=True)
        lossc(xb).backward()
        opt.step()

    def lp():
        with torch.no_grad():
            logp(x[:B])

    def sm():
        with torch.no_grad():
            sample(B)
    ms = {"train": Metric(step, "steps/s", 1, warmup=3)}
    if not compile:
        ms["log_prob"] = Metric(lp, "points/s", B, warmup=2)
        ms["sample"] = Metric(sm, "samples/s", B, warmup=2)
    return Work(ms, dict(params=harness.nparams(f), dim=D, batch=B, transforms=K, hidden=[HID, HID], bins=BINS,
                         kind=kind, mode="compile" if compile else "eager"), ("torch",) + vers)


for kind in ("nsf-ar", "nsf-coupling", "maf", "realnvp"):
    for lib in LIBS:
        REG.add(f"{lib}/{kind}", functools.partial(build, lib, kind), kind)
for lib in ("zuko", "nflows"):
    REG.add(f"{lib}/nsf-ar/compile", functools.partial(build, lib, "nsf-ar", True), "nsf-ar")
