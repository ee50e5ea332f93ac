"""Your own pictures translated: pix2pix on pairs, or CycleGAN on two kinds that nothing pairs.

No result is recorded, as the pictures are yours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..experiment import Data, Experiment


def translate(
    source: Path,
    target: Path,
    unpaired: bool = False,
    size: int = 64,
    source_colour: bool = True,
    colour: bool = True,
    fit: Literal["crop", "pad", "stretch"] = "crop",
    steps: int = 20_000,
    width: int = 64,
    batch: int = 4,
    lr: float = 2e-4,
) -> Experiment:
    """A net learns to make pictures like those of one folder from pictures like those of another.

    Pairs are told by their names, less the ending: A/cat.png becomes B/cat.jpg. With --unpaired no picture needs a
    partner. One target in twenty is held out, or what lies in test/ beside train/.

    source, target: folders, zips or tars. unpaired: CycleGAN, else pix2pix. size: height and width of both.
    source_colour: sources in RGB, else grey. colour: targets in RGB, else grey. fit: how a picture is made square: cut,
    padded with white, or stretched. steps: training steps. width: channels of the nets' first level. batch: pictures a
    step, of each kind. lr: the learning rate, which falls to 0 in the second half.
    """
    from ..adversarial.translate import CycleGAN, Pix2Pix
    from ..data.album import Album
    from ..data.listing import index
    from ..data.paired import Matched, Together, Unpaired
    from ..data.source import Shuffled
    from ..heldout import HeldOut, Quality
    from ..hooks import Translations
    from ..nets.critic import PatchCritic
    from ..nets.translate import TranslationResNet, TranslationUNet
    from ..optim import AdamW, Linear
    from ..train import Trainer

    places = [p.expanduser().absolute() for p in (source, target)]
    listed = [index(p) for p in places]
    shapes, albums = [], []
    for place, listing, rgb in zip(places, listed, (source_colour, colour), strict=True):
        parts = [Album(place, listing, part, size=(size, size), colour=rgb, fit=fit) for part in ("train", "test")]
        albums.append(parts)
        shapes.append(parts[0].shape)
    (sources, targets), (a, b) = albums, shapes
    patches = 3 if size >= 128 else 2 if size >= 64 else 1  # halvings of the critic: patches of 70, 34 or 16
    optim = AdamW(lr, betas=(0.5, 0.999), schedule=Linear())
    if unpaired:
        blocks = 9 if size >= 256 else 6
        model: CycleGAN | Pix2Pix = CycleGAN(
            TranslationResNet(a[0], b[0], width, blocks),
            TranslationResNet(b[0], a[0], width, blocks),
            PatchCritic(b[0], width, patches),
            PatchCritic(a[0], width, patches),
            a,
            b,
            identity=0.5 if a == b else 0.0,
        )
        data: Unpaired | Shuffled = Unpaired(Shuffled(sources[0], batch), Shuffled(targets[0], batch))
        test: Together | Matched = Together(sources[1], targets[1])
        names = ("generator+back", "critic+critic_back")
        quality, metric = Quality(), "frechet"
        held = min(parts[0].holds("test") for parts in albums)
        fewest = quality.k + 1
    else:
        depth = min(8, size.bit_length() - 1)  # down to one pixel
        net = TranslationUNet(a[0], b[0], width, depth, dropped=min(3, depth - 2))
        model = Pix2Pix(net, PatchCritic(a[0] + b[0], width, patches), a, b)
        data, test = Shuffled(Matched(sources, targets[0]), batch), Matched(sources, targets[1])
        names, quality, metric = ("generator", "critic"), None, "generator_loss.l1"
        held, fewest = targets[0].holds("test"), 1
    heldout = HeldOut(every=max(1, steps // 10), metric=metric, batch=batch, limit=500, also=quality)
    trainer = Trainer(
        steps,
        optim=dict.fromkeys(names, optim),
        heldout=heldout if held >= fewest else None,
        hooks=(Translations(every=max(1, steps // 10), n=10),),
        save_every=max(1, steps // 20),
        log_every=20,
    )
    return Experiment(model, Data(data, test if held else None, targets[0].space()), trainer)
