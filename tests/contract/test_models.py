"""The battery over every model of the library. A model without a small instance here fails the first test."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch

import morphogen
from morphogen.adversarial.ada import Adaptive
from morphogen.adversarial.gan import GAN
from morphogen.adversarial.losses import HINGE, NON_SATURATING, RELATIVISTIC, RELATIVISTIC_AVERAGE, WASSERSTEIN
from morphogen.adversarial.penalties import R1, R2, Consistency, GradientPenalty
from morphogen.adversarial.progressive import Growth, ProgressiveGAN
from morphogen.adversarial.readings import Auxiliary, Categorical, Continuous
from morphogen.adversarial.stylegan import PathLength, StyleGAN2
from morphogen.adversarial.translate import CycleGAN, Pix2Pix
from morphogen.autoregressive import Autoregressive
from morphogen.core import Bounds, LogProb, Model, Source
from morphogen.data.augment import Augmented, Binarise, Shift, Warp
from morphogen.data.corpus import Corpus, Windows
from morphogen.data.densities import Fresh, eight_gaussians
from morphogen.data.digits import Digits
from morphogen.data.documents import Collection
from morphogen.data.edges import thick_negative
from morphogen.data.items import Tensors
from morphogen.data.near import Cooccurrences
from morphogen.data.paired import Derived, Unpaired
from morphogen.data.source import Shuffled
from morphogen.diffusion import (
    Diffusion,
    ddpm,
    edm,
    flow_matching,
    rectified_flow,
    score_sde_subvp,
    score_sde_ve,
    score_sde_vp,
    stochastic_interpolant,
)
from morphogen.diffusion.chain import Variational, improved_ddpm
from morphogen.diffusion.decoder import Normal
from morphogen.diffusion.langevin import MALA, ULA
from morphogen.diffusion.matching import Denoising, Energy, Implicit, ScoreModel, Sliced, SlicedVR
from morphogen.diffusion.path import Linear
from morphogen.flows import iaf, maf, realnvp
from morphogen.language import (
    CBOW,
    Characters,
    GloVe,
    HierarchicalSoftmax,
    NegativeSampling,
    SkipGram,
    Word2Vec,
)
from morphogen.language.word2vec import Output, Predictor
from morphogen.latent.autoencoder import L1, Autoencoder, Contractive
from morphogen.latent.hierarchical import Ladder, Rung
from morphogen.latent.latent import Latent
from morphogen.latent.likelihood import Bernoulli, DiscretisedLogistic, Gaussian
from morphogen.latent.objective import ELBO, IWAE, InfoVAE, Objective
from morphogen.latent.perceptual import Perceptual
from morphogen.latent.posterior import Diagonal, Flowed, Posterior
from morphogen.latent.quantise import EMACodeBook, GradientCodeBook, Quantiser, ResidualVQ
from morphogen.latent.scalar import FSQ, LFQ
from morphogen.latent.vae import VAE
from morphogen.latent.vq import VQVAE, absolute
from morphogen.latent.vqgan import VQGAN, KLAutoencoder
from morphogen.nets.autoencoder import Decoder, Encoder
from morphogen.nets.causal import CausalSequence, CausalTransformer
from morphogen.nets.critic import Critic, PatchCritic
from morphogen.nets.dcgan import DCGANBody, DCGANGenerator
from morphogen.nets.dit import DiT
from morphogen.nets.ensemble import Ensemble
from morphogen.nets.masked import MADE
from morphogen.nets.mlp import MLP, ResidualMLP
from morphogen.nets.nature import NatureCNN
from morphogen.nets.progressive import GrowingCritic, GrowingGenerator
from morphogen.nets.r3gan import R3GANBody, R3GANGenerator
from morphogen.nets.recurrent import LSTM
from morphogen.nets.resnet import ResNet
from morphogen.nets.spectral import spectrally_normalised
from morphogen.nets.style import StyleCritic, StyleGenerator
from morphogen.nets.transformer import Design
from morphogen.nets.translate import TranslationResNet, TranslationUNet
from morphogen.nets.unet import UNet
from morphogen.rl.dqn import DQN, Duelling
from morphogen.rl.env import CartPole, Catch, Pendulum, Simulated
from morphogen.rl.policy import Squashed, SquashedNormal
from morphogen.rl.presets import a2c, ppo, reinforce
from morphogen.rl.replay import Priorities, Replay
from morphogen.rl.rollouts import MonteCarlo, Online, Recent, Rollouts, by_environment, standard
from morphogen.rl.sac import SAC
from morphogen.rl.tabular import random_mdp
from morphogen.rl.tabular.control import Control, DoubleQ, NStep, expected_sarsa, sarsa, tree_backup
from morphogen.rl.td3 import TD3, ddpg
from morphogen.supervised import Classifier
from morphogen.testing import Everything, box, check_model

from ..exact.codecs import Squares
from .throwaway import gan, kmeans, lm
from .throwaway import ppo as small_ppo


class Instance(NamedTuple):
    """A small model, what feeds it, and what `check_model` is to be told of it."""

    model: Model
    source: Source
    options: dict[str, Any] = {}  # noqa: RUF012  (never written to)
    normalise: Everything | None = None
    cond: dict[str, Any] | None = None


LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _words(predictor: Predictor, output: Output) -> Instance:
    text = Corpus(Collection("names"), Characters(LETTERS))
    counts = [100 + i for i in range(len(LETTERS))]
    model = Word2Vec(counts, 50, 4, predictor=predictor, output=output, window=2, subsample=None)
    return Instance(model, Shuffled(Windows(text, 12), 6))


def _net() -> MLP:
    return MLP(2, 2, 16, 1, scalars=("t",), sinusoid=8, classes=8)


def _both() -> MLP:
    # Bounded: an unclamped chain divides by its last α, 0.0025, and the exp(v) of an untrained net would follow x.
    return MLP(2, 4, 16, 1, scalars=("t",), sinusoid=8, classes=8, activation="tanh")


def _plain() -> MLP:
    return MLP(2, 2, 16, 1, classes=8)


def _unet(**more: Any) -> UNet:
    return UNet(1, widths=(8, 16), depth=1, attention=(1,), groups=4, classes=10, **more)


def _dit() -> DiT:
    return DiT(1, width=16, depth=2, heads=2, patch=4, classes=10, sinusoid=16)


def _codec(outputs: int, inputs: int) -> tuple[Encoder, Decoder]:
    widths = (4, 8)
    return (
        Encoder(1, outputs, widths=widths, depth=1, middle=False, groups=4),
        Decoder(1, inputs, widths=widths, depth=1, middle=False, groups=4),
    )


def _vqvae(quantiser: Quantiser) -> Instance:
    dim = quantiser.dim
    return Instance(VQVAE(*_codec(dim, dim), quantiser, (1, 8, 8)), _digits())


def _ring() -> Source:
    return Fresh(eight_gaussians(), 12)


def _swings() -> Source:
    return Replay(Simulated(Pendulum(limit=5), 2), capacity=30, batch=7, warmup=4)


def _digits() -> Source:
    return Shuffled(Digits("train"), 7)


def _translated() -> Source:
    return Shuffled(Derived(Digits("train"), thick_negative), 7)


def _binary() -> Source:
    return Augmented(_digits(), (Binarise(),))


def _vae(objective: Objective, posterior: Posterior | None = None, classes: int = 0) -> VAE:
    if posterior is None:
        posterior = Diagonal(ResidualMLP(64, 8, 16, 1, classes=classes), 4)
    return VAE(posterior, MLP(4, 64, 16, 1, classes=classes), Bernoulli((1, 8, 8)), objective)


def _ladder() -> Ladder:
    return Ladder(Rung(MLP(64, 16, 16, 1), 16, 4, MLP(2, 8, 16, 1)), Rung(MLP(16, 16, 16, 1), 16, 2))


def _autoencoder() -> Autoencoder:
    penalties = (Contractive(), L1(0.1))
    return Autoencoder(MLP(64, 4, 16, 1), MLP(4, 64, 16, 1), Gaussian((1, 8, 8)), 4, penalties=penalties)


def _critic(**more: int) -> Critic:
    return Critic(MLP(2, 8, 16, 1), 8, activation="silu", **more)


def _stylegan(classes: int | None = None, **more: Any) -> StyleGAN2:
    generator = StyleGenerator((1, 8, 8), (6, 4), latent=5, width=6, depth=2, classes=classes)
    return StyleGAN2(generator, StyleCritic((1, 8, 8), (6, 4), classes=classes), **more)


def _progressive(classes: int | None = None, **more: Any) -> ProgressiveGAN:
    nets = (
        GrowingGenerator((1, 8, 8), (6, 4), latent=5, classes=classes),
        GrowingCritic((1, 8, 8), (6, 4), classes=classes),
    )
    return ProgressiveGAN(*nets, Growth(0, 20), **more)  # within a fade, where every part of the nets is used


def _codes(*shape: int) -> Source:
    codes = torch.arange(81)[:, None] // torch.tensor([27, 9, 3, 1]) % 3  # (81, 4)
    return Shuffled(Tensors(codes.view(-1, *(shape or (2, 2))), {"label": torch.arange(81) % 4}), 12)


MODELS: dict[str, Callable[[], Instance]] = {
    "ddpm": lambda: Instance(ddpm(_net(), (2,), steps=20), _ring(), {"steps": 4}),
    "edm": lambda: Instance(edm(_net(), (2,)), _ring(), {"steps": 3}),
    "rectified flow": lambda: Instance(rectified_flow(_net(), (2,)), _ring(), {"steps": 3}),
    "flow matching": lambda: Instance(flow_matching(_net(), (2,)), _ring(), {"solver": "heun", "steps": 3}),
    "score sde, vp": lambda: Instance(score_sde_vp(_net(), (2,)), _ring(), {"steps": 4}),
    "score sde, sub-vp": lambda: Instance(score_sde_subvp(_net(), (2,)), _ring(), {"steps": 4}),
    "score sde, ve": lambda: Instance(score_sde_ve(_net(), (2,)), _ring(), {"steps": 4}),
    "stochastic interpolant": lambda: Instance(
        stochastic_interpolant(_net(), (2,)), _ring(), {"solver": "heun", "steps": 3}
    ),
    "improved ddpm": lambda: Instance(improved_ddpm(_both(), (2,), steps=20, decoder=Normal()), _ring(), {"steps": 4}),
    "improved ddpm, the bound alone": lambda: Instance(
        improved_ddpm(_both(), (2,), steps=6, decoder=Normal(), objective=Variational()), _ring(), {"steps": 2}
    ),
    "score model": lambda: Instance(ScoreModel(_plain(), (2,), Implicit(), ULA(0.05, 3)), _ring()),
    "score model, sliced": lambda: Instance(ScoreModel(_plain(), (2,), Sliced(2), ULA(0.05, 3)), _ring()),
    "score model, denoising": lambda: Instance(ScoreModel(_plain(), (2,), Denoising(0.3), ULA(0.05, 3)), _ring()),
    "energy model": lambda: Instance(ScoreModel(Energy(_plain()), (2,), SlicedVR(), MALA(0.05, 3)), _ring()),
    "u-net": lambda: Instance(rectified_flow(_unet(), (1, 8, 8)), _digits(), {"steps": 2}),
    "u-net, guided": lambda: Instance(
        edm(_unet(dropout=0.1), (1, 8, 8)), _digits(), {"steps": 2, "solver": "euler", "guidance": 2.0}
    ),
    "dit": lambda: Instance(edm(_dit(), (1, 8, 8)), _digits(), {"steps": 2, "guidance": 2.0}),
    "masked autoregressive flow": lambda: Instance(
        maf(2, 2, (8,), classes=8, activation="tanh", bound=1.0, drop=0.1),
        _ring(),
        normalise=box(-15, 15, 2, points=300),
    ),
    "real nvp": lambda: Instance(
        realnvp(2, 2, 4, 1, classes=8, activation="tanh", bound=0.5), _ring(), normalise=box(-15, 15, 2, points=300)
    ),
    "autoregressive": lambda: Instance(
        Autoregressive(CausalTransformer(3, (2, 2), width=16, depth=1, heads=2, classes=4), (2, 2), 3),
        _codes(),
        {"guidance": 2.0},
        Everything(torch.cartesian_prod(*[torch.arange(3)] * 4).view(-1, 2, 2)),
    ),
    "autoregressive, an LSTM, ragged": lambda: Instance(
        Autoregressive(CausalSequence(3, LSTM(6, 8), classes=4), (4,), 3, end=2),
        _codes(4),
        {"top_p": 0.9},
    ),
    "autoregressive, a Llama": lambda: Instance(
        Autoregressive(
            CausalTransformer(
                3,
                (4,),
                width=16,
                depth=1,
                heads=2,
                rotary=100.0,
                tied=True,
                begin=1,
                design=Design(norm="rms", activation="silu", gated=True, bias=False, kv_heads=1),
            ),
            (4,),
            3,
        ),
        _codes(4),
        {},
        Everything(torch.cartesian_prod(*[torch.arange(3)] * 4)),
    ),
    "autoregressive, a MADE": lambda: Instance(Autoregressive(MADE(4, 3, (8,)), (4,), 3), _codes(4)),
    "latent rectified flow": lambda: Instance(
        Latent(maf(2, 1, (8,), bound=1.0), rectified_flow(_net(), (2,))), _ring(), {"steps": 3}
    ),
    "latent autoregressive": lambda: Instance(
        Latent(Squares(3), Autoregressive(CausalTransformer(3, (2, 2), width=16, depth=1, heads=2), (2, 2), 3)),
        Shuffled(Tensors(torch.randn(30, 1, 4, 4), {"label": torch.arange(30) % 4}), 7),
        {"top_k": 2},
    ),
    "latent flow of a vae": lambda: Instance(
        Latent(VAE(Diagonal(MLP(2, 4, 16, 1), 2), MLP(2, 2, 16, 1), Gaussian((2,), 0.5)), maf(2, 2, (8,), classes=8)),
        _ring(),
    ),
    "classifier": lambda: Instance(
        Classifier(ResNet(1, 10, 4, multipliers=(1, 2)), smoothing=0.1, augment=(Warp(), Shift(1))), _digits()
    ),
    "noise-aware classifier": lambda: Instance(Classifier(_reader(), path=Linear()), _digits()),
    "vq-vae": lambda: _vqvae(EMACodeBook(16, 3)),
    "vq-vae, book by gradient": lambda: _vqvae(GradientCodeBook(16, 3)),
    "vq-vae, residual": lambda: _vqvae(ResidualVQ(8, 3, 2)),
    "vq-vae, fsq": lambda: _vqvae(FSQ((5, 4, 3))),
    "vq-vae, lfq": lambda: _vqvae(LFQ(4)),
    "kl autoencoder": lambda: Instance(KLAutoencoder(*_codec(4, 2), 2, (1, 8, 8)), _digits()),
    "vqgan": lambda: Instance(
        VQGAN(
            VQVAE(*_codec(3, 3), EMACodeBook(16, 3), (1, 8, 8), error=absolute),
            PatchCritic(1, 4, 1),
            Perceptual(Classifier(ResNet(1, 10, 4, multipliers=(1, 2)))),
        ),
        _digits(),
    ),
    "kl autoencoder with a critic": lambda: Instance(
        VQGAN(KLAutoencoder(*_codec(4, 2), 2, (1, 8, 8)), PatchCritic(1, 4, 1), game=NON_SATURATING), _digits()
    ),
    "autoencoder": lambda: Instance(_autoencoder(), _digits()),
    "stylegan2": lambda: Instance(_stylegan(), _digits(), {"truncation": 0.8}),
    "stylegan2, conditional, augmented": lambda: Instance(
        _stylegan(10, path=PathLength(2.0, 1), augment=Adaptive(p=0.4, kimg=0.1)), _digits()
    ),
    "progressive gan": lambda: Instance(_progressive(10), _digits()),
    "vae, conditional": lambda: Instance(_vae(ELBO(2.0, warmup=10), classes=10), _binary()),
    "vae, free bits": lambda: Instance(_vae(ELBO(free=0.1)), _binary()),
    "vae, 17 levels": lambda: Instance(
        VAE(Diagonal(MLP(64, 8, 16, 1), 4), MLP(4, 128, 16, 1), DiscretisedLogistic((1, 8, 8), 17)), _digits()
    ),
    "iwae": lambda: Instance(_vae(IWAE(3)), _binary()),
    "info-vae": lambda: Instance(_vae(InfoVAE()), _binary()),
    "vae, flow posterior": lambda: Instance(
        _vae(ELBO(), Flowed(MLP(64, 11, 16, 1), iaf(4, 2, (8, 8), context=3), 4, context=3)), _binary()
    ),
    "ladder vae": lambda: Instance(_vae(ELBO(), _ladder()), _binary()),
    "ladder vae, importance weighted": lambda: Instance(_vae(IWAE(3, doubly=False), _ladder()), _binary()),
    "dcgan": lambda: Instance(
        GAN(
            DCGANGenerator(4, 1, 8, 4, classes=10),
            Critic(DCGANBody(1, 8, 4), 32, classes=10),
            4,
            penalties=(Consistency(Shift(1), made=1.0),),
        ),
        _digits(),
    ),
    "r3gan": lambda: Instance(
        GAN(
            R3GANGenerator(4, 1, 8, (16, 8), group=4, classes=10),
            Critic(R3GANBody(1, 8, (8, 16), group=4, features=8), 8, classes=10),
            4,
            RELATIVISTIC,
            (R1(1.0), R2(1.0)),
            drop=0.2,
        ),
        _digits(),
        {"truncation": 1.5},
    ),
    "wgan-gp": lambda: Instance(
        GAN(MLP(4, 2, 16, 1), _critic(), 4, WASSERSTEIN, (GradientPenalty(),), critic_steps=2), _ring()
    ),
    "info-gan": lambda: Instance(
        GAN(MLP(9, 2, 16, 1), _critic(readings=7), 4, readings=(Categorical(3), Continuous(2))), _ring()
    ),
    "ac-gan, spectrally normalised": lambda: Instance(
        GAN(
            MLP(4, 2, 16, 1, classes=8),
            spectrally_normalised(_critic(readings=8)),
            4,
            HINGE,
            readings=(Auxiliary(8),),
        ),
        _ring(),
    ),
    "relativistic average, lazy": lambda: Instance(
        GAN(MLP(4, 2, 16, 1), _critic(), 4, RELATIVISTIC_AVERAGE, (R1(1.0, every=3),)), _ring()
    ),
    "pix2pix": lambda: Instance(
        Pix2Pix(TranslationUNet(1, 1, 4, 3, dropped=1), PatchCritic(2, 4, 1), (1, 8, 8), (1, 8, 8)), _translated()
    ),
    "pix2pix, without a critic": lambda: Instance(
        Pix2Pix(TranslationUNet(1, 1, 4, 3, dropped=1), None, (1, 8, 8), (1, 8, 8)), _translated()
    ),
    "cyclegan": lambda: Instance(
        CycleGAN(
            *(TranslationResNet(1, 1, 4, 1) for _ in range(2)),
            *(PatchCritic(1, 4, 1) for _ in range(2)),
            (1, 8, 8),
            (1, 8, 8),
            pool=5,
        ),
        Unpaired(*(Shuffled(Digits("train"), 6) for _ in range(2))),
    ),
    "skip-gram, negative sampling": lambda: _words(SkipGram(), NegativeSampling(2, shared=4, block=4)),
    "cbow, hierarchical softmax": lambda: _words(CBOW(), HierarchicalSoftmax()),
    "glove": lambda: Instance(
        GloVe(27, 4, x_max=20.0), Shuffled(Cooccurrences(Corpus(Collection("names"), Characters(LETTERS))), 64)
    ),
    "tabular control": lambda: Instance(
        Control(random_mdp(5, 3, ends=0.1), sarsa, gamma=0.9), Online(Simulated(random_mdp(5, 3, ends=0.1), 6))
    ),
    "double q-learning": lambda: Instance(
        DoubleQ(random_mdp(5, 3, ends=0.1), gamma=0.9, learners=2), Online(Simulated(random_mdp(5, 3, ends=0.1), 8))
    ),
    "n-step sarsa": lambda: Instance(
        NStep(random_mdp(5, 3, ends=0.1), gamma=0.9, learners=2), Recent(Simulated(random_mdp(5, 3, ends=0.1), 8), 3)
    ),
    "tree backup": lambda: Instance(
        NStep(random_mdp(5, 3, ends=0.1), expected_sarsa, tree_backup, gamma=0.9),
        Recent(Simulated(random_mdp(5, 3, ends=0.1), 6), 2),
    ),
    "dqn, duelling, prioritised, three steps": lambda: Instance(
        DQN(Duelling(MLP(4, 6, 8, 1), MLP(6, 1, 8, 1), MLP(6, 2, 8, 1)), 2, copy_every=3, explore=5),
        Replay(Simulated(CartPole(limit=5), 2), capacity=30, batch=7, warmup=4, n=3, priorities=Priorities()),
    ),
    "dqn of pixels": lambda: Instance(
        DQN(NatureCNN(1, 6, 3, ((4, 3, 1), (4, 2, 2)), 8), 3, double=False),
        Replay(Simulated(Catch(6), 2), capacity=30, batch=7, warmup=6),
    ),
    "sac": lambda: Instance(
        SAC(MLP(3, 2, 8, 1), Ensemble(2, 4, width=8), SquashedNormal(1, -2.0, 2.0), target_entropy=-1.0),
        _swings(),
        cond={"obs": SEEN["obs"][:, :3]},
    ),
    "sac, its temperature fixed": lambda: Instance(
        SAC(MLP(3, 2, 8, 1), Ensemble(2, 4, width=8), SquashedNormal(1, -2.0, 2.0), alpha=0.1),
        _swings(),
        cond={"obs": SEEN["obs"][:, :3]},
    ),
    "td3": lambda: Instance(TD3(MLP(3, 1, 8, 1), Ensemble(2, 4, width=8), Squashed(1, -2.0, 2.0)), _swings()),
    "ddpg": lambda: Instance(ddpg(MLP(3, 1, 8, 1), Ensemble(1, 4, width=8), Squashed(1, -2.0, 2.0)), _swings()),
    "ppo": lambda: Instance(
        ppo(_pole(), width=8, depth=1, until=10, entropy=0.01),
        Rollouts(_pole(), 4, epochs=2, pieces=2, finish=standard),
        cond=SEEN,
    ),
    "ppo of numbers": lambda: Instance(
        ppo(_pendulum(), width=8, depth=1, value_clip=0.2, observations=True, returns=True),
        Rollouts(_pendulum(), 4, epochs=2, pieces=2, finish=standard),
        cond={"obs": SEEN["obs"][:, :3]},
    ),
    "ppo with a memory": lambda: Instance(
        ppo(_pole(6), width=8, depth=1, memory=5, observations=True),
        Rollouts(_pole(6), 5, epochs=2, cut=by_environment, finish=standard),
        cond=SEEN,
    ),
    "a2c": lambda: Instance(a2c(_pole(), width=8, depth=1), Rollouts(_pole(), 2), cond=SEEN),
    "reinforce": lambda: Instance(
        reinforce(_pole(), width=8, depth=1), Rollouts(_pole(), 3, estimate=MonteCarlo(0.9)), cond=SEEN
    ),
    "gan": lambda: _whole(gan),
    "k-means": lambda: _whole(kmeans),
    "language model": lambda: _whole(lm),
    "ppo of 60 lines": lambda: _whole(small_ppo),
}


LONG = ("u-net, guided", "dit")  # their likelihood is that of "u-net", and each check of it many passes of the net


SEEN = {"obs": torch.linspace(-1, 1, 28).view(7, 4)}  # what a policy acts on


def _pole(envs: int = 4) -> Simulated:
    return Simulated(CartPole(limit=3), envs)


def _pendulum() -> Simulated:
    return Simulated(Pendulum(limit=3), 4)


def _reader() -> ResNet:
    return ResNet(1, 10, 4, multipliers=(1, 2), scalars=("t",))


def _whole(recipe: Any) -> Instance:
    experiment = recipe.experiment()
    return Instance(experiment.model, experiment.data.train)


def _shipped() -> Iterator[type[Model]]:
    for module in pkgutil.walk_packages(morphogen.__path__, "morphogen."):
        for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            known = issubclass(cls, Model) and cls is not Model and cls.__module__ == module.name
            if known and not inspect.isabstract(cls):
                yield cls


def test_every_model_of_the_library_is_held_to_the_battery() -> None:
    held = {type(make().model) for make in MODELS.values()}
    missing = sorted(cls.__qualname__ for cls in set(_shipped()) - held)
    assert not missing, f"give {missing} a small instance in MODELS"
    assert Diffusion in held  # the walk and the table do meet


@pytest.mark.parametrize("name", MODELS)
def test_the_battery(name: str) -> None:
    torch.manual_seed(0)  # the weights that it is tried with
    instance = MODELS[name]()
    if name in LONG:
        instance.model.lacks = (LogProb, Bounds)
    report = check_model(
        instance.model, instance.source, options=instance.options, normalise=instance.normalise, cond=instance.cond
    )
    print(report)
    report.raise_if_failed()
