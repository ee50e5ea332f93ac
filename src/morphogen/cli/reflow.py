"""`morphogen reflow`: pairs of noise and sample from a run, for the next round of rectified flow."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from . import recipe as recipes
from .context import Context
from .sample import load_run, options_of, plain_options, wished

if TYPE_CHECKING:
    from torch import Tensor

    from ..diffusion import Diffusion


def reflow(
    context: Context,
    run: Path,
    *,
    n: int = 10_000,
    label: tuple[str, ...] = (),
    seed: int = 0,
    out: Path | None = None,
    checkpoint: str = "newest",
    ema: str | None = None,
    device: str | None = None,
    with_: tuple[Path, ...] = (),
) -> None:
    """Draw pairs (z, x) of noise and what a run's model makes of it, to train the next, straighter round on.

    run: the folder of the run, of a diffusion or flow. n: how many pairs. label: classes in turn, by name or number, or
    none (also --class; default: as `morphogen sample`). seed: pair i is a function of the seed and i.
    out: the .safetensors file to write, whole or not at all, with x, z and the conditions (default:
    pairs-SEED.safetensors in the run). checkpoint: newest, best or a step. ema: which averaged weights, by decay or
    length, or live (default: the run's first average). device: cpu, cuda, …. with_: files that define classes of yours
    which the run uses.
    """
    from ..diffusion import Diffusion
    from ..diffusion.chain import LearnedVariance
    from ..experiment import draw

    if n < 1:
        raise UserError(f"--n {n} asks for nothing: take 1 or more.")
    out = run / f"pairs-{seed}.safetensors" if out is None else out
    if out.suffix != ".safetensors":
        raise UserError(f"--out {str(out)!r} is no .safetensors file: name one, such as pairs.safetensors.")
    if out.exists():
        raise UserError(f"{str(out)!r} is there already: name another file, or remove it first.")
    loaded = load_run(context, run, checkpoint, device, recipes.load_files(with_), ema)
    model = loaded.model
    if isinstance(model, LearnedVariance):
        raise UserError(
            f"The run {str(run)!r} is a LearnedVariance: its chain draws noise on the way, so its samples do not belong"
            " to their z: reflow needs another diffusion or flow, such as one of digits-diffusion."
        )
    if not isinstance(model, Diffusion):
        raise UserError(
            f"The run {str(run)!r} is a {type(model).__name__}, which makes no path from noise to data: reflow needs a"
            " diffusion or flow, such as one of digits-diffusion."
        )
    options = options_of(context, loaded)
    cond, asked = wished(loaded, n, label)
    _check_solver(model, cond, seed, options)
    out.parent.mkdir(parents=True, exist_ok=True)
    with context.tell.progress("pair", n) as progress:
        x = draw(model, n, cond, seed=seed, options=options, progress=progress).cpu()
    if bad := int((~x.isfinite()).flatten(1).any(1).sum()):
        raise UserError(
            f"{bad} of the {n} samples are not finite, so nothing was written: lower the guidance, take more steps,"
            " or train the run longer."
        )
    told = plain_options(options)
    note = {"run": str(run), "step": loaded.step, "ema": loaded.average, "seed": seed, "label": list(label)}
    note["options"] = told
    _write(out, x, _start(model, n, seed, x), cond, note)
    text = f"{n} pairs of noise and samples of {asked} (seed {seed}, step {loaded.step}) in {out}"
    following = _following(loaded.page.get("recipe") or {}, out)
    fields = {"n": n, **note, "file": str(out), "next": [following] if following else []}
    context.tell.answer("reflowed", fields, text + (f"\nNext:\n  {following}" if following else ""))


def _following(recipe: Mapping[str, Any], out: Path) -> str:
    """The command of the next round, where the run is of a shipped recipe that takes pairs; else nothing."""
    from ..recipes import names

    name, given = recipe.get("name", ""), recipe.get("arguments", {})
    flags = {flag.name for flag in recipes.find(name).flags} if name in names() else set()
    if "pairs" not in flags:
        return ""
    words = ["morphogen", "train", name, "--preset", "rectified_flow", "--pairs", str(out)]
    if "guidance" in flags:  # the pairs are guided already
        words += ["--guidance", "1"]
    if "density" in given:
        words += ["--density", given["density"]]
    return shlex.join(words)


def _start(model: Diffusion, n: int, seed: int, x: Tensor) -> Tensor:
    """The noise z (n, *shape) at which `draw` began: the first draw from each sample's key."""
    from ..core import Noise

    return Noise.seeded(seed, n).normal(*model.shape, dtype=x.dtype)


def _check_solver(model: Diffusion, cond: Mapping[str, Any] | None, seed: int, options: Mapping[str, Any]) -> None:
    """Raise UserError where a sample is no function of its z alone: where more is drawn on the way."""
    import torch

    from ..core import Noise, each

    device = next(model.parameters()).device
    with torch.no_grad():
        used, fresh = (Noise.seeded(seed, 1, device=device) for _ in range(2))
        x = model.sample(1, None if cond is None else each(cond, lambda c: c[:1].to(device)), noise=used, **options)
    fresh.normal(*model.shape, dtype=x.dtype)
    if not torch.equal(used.bits(1), fresh.bits(1)):
        raise UserError(
            "This solver draws noise on the way, so its samples do not belong to their z: take one that does not,"
            " such as --solver heun --steps 50."
        )


def _write(out: Path, x: Tensor, z: Tensor, cond: Mapping[str, Tensor] | None, note: Mapping[str, Any]) -> None:
    """Write the file in one step: under another name, to the disk, then renamed."""
    from ..checkpoint import save_tensors
    from ..core import leaves
    from ..disk import settle

    tensors = {"x": x, "z": z} | {f"cond.{name}": c for name, c in leaves(cond or {})}
    partial = out.with_name(out.name + ".partial")
    save_tensors({k: t.cpu().contiguous() for k, t in tensors.items()}, partial, {"reflow": json.dumps(note)})
    settle(partial, out)
