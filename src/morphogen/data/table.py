"""The data sets by name, for the command line: what there is, what it is, and a way to open and draw it.

Importing this reads nothing and imports no torch, so that `--help` can name the data at once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UserError, unknown

if TYPE_CHECKING:
    from ..core import Items, Space
    from .densities import Density

Root = str | Path | None


class Parts(NamedTuple):
    """An opened data set: items to train on, items held out, the space, and the density where it is known."""

    train: Items
    test: Items
    space: Space
    density: Density | None = None


class About(NamedTuple):
    """What a data set is. counts: items of each part. shape: of one x. sha256: of the files, or of the parts. unit: of
    texts and music, which have no shape before they are tokens, what is counted.
    """

    name: str
    summary: str
    counts: dict[str, int]
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    licence: str
    citation: str
    sha256: dict[str, str]
    unit: str = ""


class _Entry(NamedTuple):
    about: About
    open: Callable[[Root], Any]


def names() -> list[str]:
    """The names that `open` knows."""
    return list(_TABLE)


def describe(name: str) -> About:
    """What the data set is; nothing is read. Raises UserError naming the nearest name."""
    return _entry(name).about


def open(name: str, root: Root = None) -> Any:
    """The `Parts` of a data set, or the `Texts` of a collection; files are read on first use.

    root: the only folder to look for them in.
    """
    return _entry(name).open(root)


def folder_of(name: str, root: Root = None) -> Path | None:
    """The folder of the data set's files; None where it needs none. Raises UserError where they are not found."""
    from .roots import InFiles

    opened = open(name, root)
    held = (opened,) if isinstance(opened, InFiles) else (opened.train, opened.test)
    found = [items.where()[1] for items in held if isinstance(items, InFiles)]
    return found[0] if found and found[0] != Path(__file__).parent else None


def _entry(name: str) -> _Entry:
    if name not in _TABLE:
        raise unknown("data set", name, _TABLE, "`morphogen data list` names them all.")
    return _TABLE[name]


def show(name: str, root: Root = None, columns: int = 12) -> Any:
    """A sheet (PIL.Image.Image) of what was read: pictures by class, a row each; points beside their density; the
    beginning of texts; or music as piano rolls.
    """
    import torch

    from .documents import Texts
    from .space import Pictures, Points, grid

    if columns < 1:
        raise UserError(f"A sheet of {columns} columns shows nothing: take 1 or more.")
    parts = open(name, root)
    if isinstance(parts, Texts):
        return _beginning(parts)
    if isinstance(parts.space, Points):
        drawn = parts.train.take(torch.arange(len(parts.train)))["x"]
        exact = parts.density.log_prob(parts.space.nodes(384))
        return grid(
            [parts.space.show(drawn), parts.space.chart(exact)],
            captions=[f"{name}: {len(drawn):,} samples", "exact density"],
        )
    assert isinstance(parts.space, Pictures)
    batch = parts.train.take(torch.arange(min(len(parts.train), 200 * len(parts.space.classes))))
    label = batch["cond"]["label"]
    chosen = [int(i) for k in range(len(parts.space.classes)) for i in (label == k).nonzero()[:columns, 0]]
    captions = [parts.space.classes[k] for k in label[chosen]]
    return parts.space.show(batch["x"][chosen], columns, captions)


def _beginning(texts: Any) -> Any:
    """A sheet of the first texts, or of the first pieces of music."""
    from itertools import islice

    import torch

    from .music import Chorales, Music, Notes
    from .text import sheet

    if isinstance(texts, Chorales):
        pieces = [torch.from_numpy(Notes().encode(piece)).long() for piece in islice(texts.documents("train"), 4)]
        end = Notes().special(Notes.specials[0])
        rolls = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True, padding_value=end)
        return Music(rolls.shape[1]).show(rolls)
    found = list(islice(texts.documents("train"), 96))
    if len(found) == 1:  # one long text: its first pages
        found = [found[0][i : i + 400] for i in range(0, min(len(found[0]), 2400), 400)]
    return sheet(found)


# ---- the table -----------------------------------------------------------------------------------------------------


def _digits(root: Root) -> Parts:
    from .digits import Digits, space

    return Parts(Digits("train"), Digits("test"), space())


def _mnist(root: Root) -> Parts:
    from .mnist import MNIST, space

    return Parts(MNIST("train", root=root), MNIST("test", root=root), space())


def _fashion(root: Root) -> Parts:
    from .mnist import FashionMNIST, space

    return Parts(FashionMNIST("train", root=root), FashionMNIST("test", root=root), space("fashion-mnist"))


def _cifar10(root: Root) -> Parts:
    from .cifar10 import CIFAR10, space

    return Parts(CIFAR10("train", root=root), CIFAR10("test", root=root), space())


def _pneumonia(root: Root) -> Parts:
    from .medmnist import PneumoniaMNIST, space

    return Parts(PneumoniaMNIST("train", root=root), PneumoniaMNIST("test", root=root), space())


def _emoji(root: Root) -> Parts:
    from .emoji import Emoji, space

    return Parts(Emoji("train", root=root), Emoji("test", root=root), space())


def _collection(name: str) -> Callable[[Root], Any]:
    def opened(root: Root) -> Any:
        from .documents import Collection

        return Collection(name, root=root)

    return opened


def _chorales(root: Root) -> Any:
    from .music import Chorales

    return Chorales(root=root)


def _density(make: Callable[[Any], Any]) -> Callable[[Root], Parts]:
    def opened(root: Root) -> Parts:
        from . import densities

        density = make(densities)
        return Parts(
            densities.Drawn(density, 100_000, 0), densities.Drawn(density, 10_000, 1), density.space(), density
        )

    return opened


def _known(name: str, summary: str, components: int, make: Callable[[Any], Any]) -> _Entry:
    counts, classes = {"train": 100_000, "test": 10_000}, tuple(str(k) for k in range(components))
    return _Entry(
        About(name, summary, counts, (2,), classes, "none needed: it is computed", _FFJORD, {}), _density(make)
    )


_FFJORD = "shape customary since Grathwohl et al. 2018, FFJORD, arXiv:1810.01367"
_NUMERALS = tuple("0123456789")
_ENTRIES = (
    _Entry(
        About(
            "digits",
            "handwritten digits of 8x8 pixels and 17 levels, embedded",
            {"train": 1437, "test": 360},
            (1, 8, 8),
            _NUMERALS,
            "CC BY 4.0",
            "Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI repository",
            {"digits.npz": "b2dab7b501728c22e9119ad76740b2e17c77a231e42d1e592380d90886f1a05e"},
        ),
        _digits,
    ),
    _Entry(
        About(
            "mnist",
            "handwritten digits of 28x28 grey pixels",
            {"train": 60_000, "test": 10_000},
            (1, 28, 28),
            _NUMERALS,
            "CC BY-SA 3.0, as commonly stated",
            "LeCun, Bottou, Bengio and Haffner 1998, Gradient-based learning applied to document recognition",
            {
                "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            },
        ),
        _mnist,
    ),
    _Entry(
        About(
            "fashion-mnist",
            "clothes of 28x28 grey pixels in ten classes",
            {"train": 60_000, "test": 10_000},
            (1, 28, 28),
            ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
            "MIT",
            "Xiao, Rasul and Vollgraf 2017, Fashion-MNIST, arXiv:1708.07747",
            {
                "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            },
        ),
        _fashion,
    ),
    _Entry(
        About(
            "cifar10",
            "colour pictures of 32x32 pixels in ten classes",
            {"train": 50_000, "test": 10_000},
            (3, 32, 32),
            ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
            "none stated; freely used for research",
            "Krizhevsky 2009, Learning multiple layers of features from tiny images",
            {
                "train": "a0181da372c0d63a5920fdbea2ec3f83ecbc552d378218e1cb473cf634941a3b",
                "test": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
            },
        ),
        _cifar10,
    ),
    _Entry(
        About(
            "pneumoniamnist",
            "chest X-rays of 28x28 grey pixels, normal or with pneumonia",
            {"train": 4708, "test": 624},
            (1, 28, 28),
            ("normal", "pneumonia"),
            "CC BY 4.0",
            "Yang et al. 2023, MedMNIST v2, arXiv:2110.14795; Kermany et al. 2018",
            {},
        ),
        _pneumonia,
    ),
    _Entry(
        About(
            "emoji",
            "emoji of 64x64 RGB pixels by Twitter, each with Google's as its source, of eight categories",
            {"train": 1011, "test": 126},
            (3, 64, 64),
            ("Activity", "Flags", "Foods", "Nature", "Objects", "People", "Places", "Symbols"),
            "table MIT; Google's pictures Apache-2.0, Twitter's CC BY 4.0",
            "Henderson, emoji-data, about 2016",
            {},
        ),
        _emoji,
    ),
    _Entry(
        About(
            "tinyshakespeare",
            "scenes of Shakespeare as one text of 65 characters, its end held out",
            {"train": 1_003_854, "test": 111_540},
            (),
            (),
            "public domain",
            "Karpathy 2015, The unreasonable effectiveness of recurrent neural networks",
            {"input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"},
            "characters",
        ),
        _collection("tinyshakespeare"),
    ),
    _Entry(
        About(
            "names",
            "first names in lower case, a to z",
            {"train": 28_898, "test": 3135},
            (),
            (),
            "MIT; the Social Security Administration's names are in the public domain",
            "Karpathy 2022, makemore",
            {"names.txt": "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d"},
            "names",
        ),
        _collection("names"),
    ),
    _Entry(
        About(
            "wikitext2",
            "articles of Wikipedia as words with <unk>: the valid part to train on, and the test part",
            {"train": 1_120_192, "test": 1_255_018},
            (),
            (),
            "CC BY-SA 3.0",
            "Merity, Xiong, Bradbury and Socher 2016, arXiv:1609.07843",
            {
                "valid.txt": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
                "test.txt": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
            },
            "characters",
        ),
        _collection("wikitext2"),
    ),
    _Entry(
        About(
            "chorales",
            "chorales of J. S. Bach, four voices in steps of a quarter, as MIDI numbers",
            {"train": 229, "test": 77},
            (),
            (),
            "Bach is in the public domain; of the compilation none stated",
            "Boulanger-Lewandowski, Bengio and Vincent 2012, arXiv:1206.6392",
            {"jsb-chorales-quarter.json": "2db9329f1881a1d3f49703ec556bf1d6f84b4f6c1d702c156536e93cf31e1c91"},
            "pieces",
        ),
        _chorales,
    ),
    _known("8-gaussians", "eight Gaussians on a circle", 8, lambda d: d.eight_gaussians()),
    _known("25-gaussians", "twenty-five narrow Gaussians on a square grid", 25, lambda d: d.gaussian_grid()),
    _known("checkerboard", "uniform on the dark squares of a 4x4 board", 8, lambda d: d.Checkerboard()),
    _known("moons", "two interleaved half circles", 2, lambda d: d.moons()),
    _known("rings", "four concentric circles", 4, lambda d: d.rings()),
    _known("pinwheel", "five arms wound up", 5, lambda d: d.Pinwheel()),
)
_TABLE = {entry.about.name: entry for entry in _ENTRIES}
