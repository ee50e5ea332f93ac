"""The papers' choices of bijections; each starts as the identity. See `autoregressive.py` and `coupling.py`.

maf      data to noise, affine autoregressive    Papamakarios, Pavlakou & Murray 2017, arXiv:1705.07057
iaf      noise to data, affine autoregressive    Kingma et al. 2016, arXiv:1606.04934
realnvp  data to noise, affine couplings         Dinh, Sohl-Dickstein & Bengio 2017, arXiv:1605.08803
"""

from __future__ import annotations

from ..errors import UserError
from ..nets.masked import MADE
from ..nets.mlp import MLP
from .autoregressive import AffineAutoregressive
from .bijection import Composition
from .coupling import AffineCoupling
from .flow import Flow


def maf(
    features: int,
    layers: int = 5,
    widths: tuple[int, ...] = (64, 64),
    *,
    classes: int = 0,
    activation: str = "relu",
    bound: float = 5.0,
    drop: float = 0.0,
) -> Flow:
    """A masked autoregressive flow of points (B, features): densities in one pass, samples in `features` a layer.

    layers: affine autoregressive bijections, every second one in the reversed order. widths, classes, activation: of
    each `MADE`. bound: of each log-scale. drop: see `Flow`.
    """
    return Flow(_autoregressive(features, layers, widths, classes, 0, activation, bound), (features,), drop=drop)


def iaf(
    features: int,
    layers: int = 2,
    widths: tuple[int, ...] = (64, 64),
    *,
    classes: int = 0,
    context: int = 0,
    activation: str = "relu",
    bound: float = 5.0,
) -> Composition:
    """An inverse autoregressive flow: noise ε (B, features) to z and log |det dz/dε|, both in one pass.

    The density of z is then log N(ε) − log |det|, as a posterior needs it. context: width of `cond["context"]`, a
    vector that every layer reads. Others: see `maf`.
    """
    return _autoregressive(features, layers, widths, classes, context, activation, bound)


def _autoregressive(
    features: int, layers: int, widths: tuple[int, ...], classes: int, context: int, activation: str, bound: float
) -> Composition:
    natural = tuple(range(features))
    nets = [
        MADE(
            features,
            2,
            widths,
            order=natural[::-1] if i % 2 else natural,
            classes=classes,
            context=context,
            activation=activation,
            last=0.0,
        )
        for i in range(layers)
    ]
    return Composition(*(AffineAutoregressive(net, bound=bound) for net in nets))


def realnvp(
    features: int,
    layers: int = 6,
    width: int = 64,
    depth: int = 2,
    *,
    classes: int = 0,
    activation: str = "relu",
    bound: float = 5.0,
    drop: float = 0.0,
) -> Flow:
    """Affine couplings of points (B, features), those at even places and those at odd ones staying in turn.

    width, depth, classes, activation: of each `MLP`. bound: of each log-scale. drop: see `Flow`.
    Raises UserError for a single feature, which a coupling cannot split.
    """
    if features < 2:
        raise UserError("A coupling of a single feature has nothing to go by: take maf(1).")
    couplings = []
    for i in range(layers):
        stays = tuple((j + i) % 2 == 0 for j in range(features))
        net = MLP(
            sum(stays), 2 * (features - sum(stays)), width, depth, classes=classes, activation=activation, last=0.0
        )
        couplings.append(AffineCoupling(net, stays, bound=bound))
    return Flow(Composition(*couplings), (features,), drop=drop)
