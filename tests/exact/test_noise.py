"""The numbers of `Noise` are for ever: those of the first version, whatever computes them now."""

from __future__ import annotations

import hashlib

import pytest
import torch

from morphogen.core import Noise, fold, keys

SHAPES = [(), (1,), (2,), (3,), (5,), (8,), (1, 8, 8), (3, 5, 7), (64,), (0,)]
GOLDEN = 0x9E3779B97F4A7C15


def signed(z: int) -> int:
    z %= 1 << 64
    return z - (1 << 64) if z >> 63 else z


def words(key: torch.Tensor, draw: int, n: int) -> torch.Tensor:
    """splitmix64 in torch's integers: word j of draw d is the finaliser of key + d·step + (j + 1)·golden."""
    z = (key + signed(draw * 0xD1342543DE82EF95))[:, None] + torch.arange(1, n + 1) * signed(GOLDEN)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))) * signed(factor)
    return z


def uniform(key: torch.Tensor, draw: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    z = words(key, draw, torch.Size(shape).numel()) >> 40
    u = (z.double() + 2.0**23) * 2.0**-24
    if dtype in (torch.float16, torch.bfloat16):
        u = u.float().clamp(max=1 - torch.finfo(dtype).eps / 2)
    return u.to(dtype).reshape(len(key), *shape)


def normal(key: torch.Tensor, draw: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    n = torch.Size(shape).numel()
    z = words(key, draw, (n + 1) // 2)
    radius = (((z >> 32).double() + (2.0**31 + 0.5)) * 2.0**-32).log().mul(-2).sqrt()
    angle = (z & 0xFFFFFFFF).double() * (2 * torch.pi * 2.0**-32)
    return torch.cat((radius * angle.cos(), radius * angle.sin()), 1)[:, :n].to(dtype).reshape(len(key), *shape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 3, 33, 256, 1000])
def test_every_bit_is_what_the_definition_in_torch_says(count, dtype):
    key = keys(torch.arange(count), count, 11)
    for given in (key, torch.stack((key, key + 5), 1)[:, 0]):  # whole, and a column of something
        for shape in SHAPES:
            noise = Noise(given)
            assert torch.equal(noise.uniform(*shape, dtype=dtype), uniform(key, 0, shape, dtype)), shape
            assert torch.equal(noise.normal(*shape, dtype=dtype), normal(key, 1, shape, dtype)), shape
            assert torch.equal(noise.bits(3), words(key, 2, 3))
            assert noise.uniform(*shape, dtype=dtype).is_contiguous()
            assert noise.normal(*shape, dtype=dtype).is_contiguous()
            assert torch.equal(noise.normal(*shape, dtype=dtype), normal(key, 5, shape, dtype)), shape


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("shape", [(), (1,), (6,), (2, 3), (0,)])
def test_keys_are_of_integers_of_any_kind_and_shape(dtype, shape):
    """Each by the finaliser in Python's own integers."""
    n = torch.Size(shape).numel()
    index = (torch.arange(n) * 7).to(dtype).reshape(shape)
    found = keys(index, 5, 9)
    expected = []
    for i in range(n):
        z = (7 * i * GOLDEN + fold(5, 9)) % (1 << 64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            z = (z ^ (z >> shift)) * factor % (1 << 64)
        expected.append(signed(z))
    assert (found.dtype, found.shape) == (torch.int64, torch.Size(shape))
    assert found.flatten().tolist() == expected
    if shape == (6,):
        assert torch.equal(keys(index[::2], 5, 9), found[::2])


FROZEN = {
    "bits 5 9": "29d7f425fcf66bb4",
    "bits 256 1": "8f03a191aa786b56",
    "uniform 256": "841a36636dc418bc",
    "uniform 33 3 5 7": "6305f1b7975e7e4e",
    "normal 256 2": "255afa6545f7c67a",
    "normal 7 1 8 8": "836b2ef4ef941b55",
    "normal 129 3": "4dfdcf9b38a337b8",
    "normal 64 64": "986638e5509cb5a1",
}


def digest(t: torch.Tensor) -> str:
    return hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("what", FROZEN)
def test_the_numbers_of_the_first_version(what):
    """Hashes taken of the first version. Half a step of float64 in log or cos moves no float32 of these."""
    assert digest(drawn(what)) == FROZEN[what]


def drawn(what: str) -> torch.Tensor:
    kind, count, *shape = what.split()
    noise = Noise(keys(torch.arange(int(count)), 7, 3))
    noise.bits(1)
    return getattr(noise, kind)(*map(int, shape), **({} if kind == "bits" else {"dtype": torch.float32}))
