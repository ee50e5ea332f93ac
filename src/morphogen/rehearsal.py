"""A rehearsal: what a training will take, learnt from a few real steps of it.

    seconds = start + (steps - measured) mean + measured steps + Σ (times due) (seconds once) + end

with the trainer's own steps, held-out measurement, hooks and checkpoints, each done at least once on the real device,
so that nothing is modelled that can be measured. Bytes of weights, gradients, optimisers and averages are counts, and
the peak is what the process or the device has really held.

What a rehearsal cannot see: costs that change on the way (nets that grow, a replay that fills), and programs that share
the machine.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .core import Batch, Lives, Model, Phase, Source, beneath, parameters, size
from .data.corpus import ByLength, Sequences, Windows
from .data.source import Shuffled
from .device import choose_device
from .errors import UserError, out_of_memory
from .experiment import Experiment, load, write_spec
from .heldout import HeldOut
from .hooks import Voice
from .spec import arguments, call, modules_of
from .train import Training

WARM = 3  # steps that are not counted: allocators, caches and compilers settle in them
LEAST = 5  # steps measured, however long they take
BATCHES = 4  # looked at for how much a step learns from


class _Heard(Voice):
    """Keeps what a training has to say of itself."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """A sentence."""
        self.said.append(text)


def amount(model: Model, source: Source, batches: Sequence[Batch], steps: int) -> tuple[float, str]:
    """How much a step learns from, and in which unit: tokens of sequences or samples, the mean of some batches; or what
    an agent has lived, the mean of the `steps` taken.
    """
    if (lives := beneath(source, Lives)) is not None:
        return lives.env_steps / max(1, steps), "environment steps"
    x = batches[0].get("x")
    if isinstance(x, Tensor) and not x.is_floating_point() and x.ndim > 1:
        return sum(map(_tokens, batches)) / len(batches), "tokens"
    return sum(map(size, batches)) / len(batches), "samples"


def _tokens(batch: Batch) -> float:
    return float(batch["lengths"].sum() if "lengths" in batch else batch["x"].numel())


def distinct(source: Source, per_sample: float) -> float | None:
    """How much there is to learn from before it repeats, in the unit of `amount`; None where it never does, or is not
    known.
    """
    if isinstance(source, ByLength):
        return float(sum(s.items.lengths().sum() for s in source.buckets.sources if isinstance(s.items, Sequences)))
    if not isinstance(source, Shuffled):
        return None
    if isinstance(source.items, Windows):  # which may overlap
        return float((len(source.items) - 1) * source.items.stride + source.items.length)
    return len(source.items) * per_sample


def size_of(model: Model) -> int:
    """N: how many numbers are trained."""
    return sum(parameters(model).values()) - sum(p.numel() for p in model.parameters() if not p.requires_grad)


def resident() -> dict[str, int]:
    """Bytes that this process holds in memory, and the most that it has ever held: `now`, `peak`."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        said = {k: v.split() for k, _, v in (line.partition(":") for line in lines)}
        return {"now": int(said["VmRSS"][0]) * 1024, "peak": int(said["VmHWM"][0]) * 1024}
    except (OSError, KeyError):  # not Linux
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {"now": most, "peak": most}


def standing(training: Training) -> dict[str, int]:
    """Bytes that stand in memory from step to step: weights, gradients, optimisers, averages. Each is a count of what
    is there, so exact; gradients are there within a step.
    """
    trained = {p for turn in training.turns for p in turn.params}
    kept = [s for o in training._optimisers() for state in o.state.values() for s in state.values()]
    tensors = [*training.model.parameters(), *training.model.buffers()]
    turns = [sum(p.nbytes for p in turn.params) for turn in training.turns]
    return {
        "weights": sum(t.nbytes for t in {id(t): t for t in tensors}.values()),
        "gradients": max(turns, default=0) if trained else 0,
        "optimiser": sum(t.nbytes for t in kept if isinstance(t, Tensor)),
        "averages": sum(t.nbytes for average in training.averages for t in average.mean.values()),
    }


def flops(step: Callable[[], object]) -> float | None:
    """Floating-point operations of the matrix products, convolutions and attention of a step, forward and back; None
    where there is none of these.
    """
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    def forward(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(q, k, v))

    def backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_backward_flop_count(grad, q, k, v))

    aten = torch.ops.aten
    own = {  # which torch does not count
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        step()
    return float(counter.get_total_flops()) or None


def flops_of(model: Model, batch: Batch) -> float | None:
    """The same of a step of the model on a batch, counted by its phases alone."""

    def step() -> None:
        for phase in model.phases():
            if isinstance(phase, Phase):
                said = model(batch, phase.loss.__name__).value
                for value in [said] if isinstance(said, Tensor) else said.values():
                    value.backward(retain_graph=True)
        model.zero_grad()

    return flops(step)


def rehearse(
    experiment: Experiment,
    run: Path,
    *,
    seed: int = 0,
    device: str | None = None,
    seconds: float = 5.0,
    began: float | None = None,
) -> dict[str, Any]:
    """Begin the training of `experiment` in the empty folder `run`, measure it for about `seconds`, and say what the
    whole of it takes; of what is written the folder holds a true beginning.

    began: when the process was started (`time.time()`), so that the time to come this far counts too.
    Returns a JSON object: device, steps, parameters, memory (bytes), seconds, once (seconds of each thing once), times
    (how often each is due), disk (bytes), amount (what training learns from), flops (a step), said (by the trainer).
    Raises UserError as training does, and where memory does not suffice.
    """
    try:
        return _rehearsed(experiment, run, seed, device, seconds, began)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        where = choose_device(device)
        raise UserError(
            f"It does not fit: memory of {where} ran out in the rehearsal; take a smaller batch or net, or"
            " Trainer(micro=…)."
        ) from error


def _rehearsed(
    experiment: Experiment,
    run: Path,
    seed: int,
    device: str | None,
    seconds: float,
    began: float | None,
) -> dict[str, Any]:
    entered = time.perf_counter()
    before = 0.0 if began is None else max(0.0, time.time() - began)
    base, where = resident()["now"], choose_device(device)
    gpu = where.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats(where)
    voice, trainer = _Heard(), experiment.trainer
    write_spec(run, experiment, seed)
    training = Training(trainer, experiment.model, experiment.data, run, seed=seed, device=where, voice=voice)

    def timed(f: Callable[[], object]) -> float:
        start = time.perf_counter()
        f()
        if gpu:
            torch.cuda.synchronize(where)
        return time.perf_counter() - start

    training.begin()
    once = {"start": before + time.perf_counter() - entered}
    steps = trainer.steps
    warm = [timed(training.advance) for _ in range(min(WARM, steps))]
    each: list[float] = []
    spent = 0.0
    while training.step < steps and (len(each) < LEAST or spent < seconds):
        each.append(timed(training.advance))
        spent += each[-1]
    measured = each or warm
    mean = sum(measured) / len(measured)
    stood = standing(training)
    once["step"] = mean
    times = {"start": 1, "step": steps}
    counted = flops(training.advance) if training.step < steps and not trainer.compile else None
    lived = beneath(training.source, Lives) is not None  # and would live on
    batches = [training._next(training.step + 1 + i) for i in range(1 if lived else BATCHES)]
    per_step, unit = amount(training.model, training.source, batches, training.step)
    training._log_line()
    once["checkpoint"] = timed(training.save)
    kept = _bytes(training.checkpoints.path(training.step))
    saves = {s for s in range(1, steps + 1) if s % trainer.save_every == 0} | {steps}
    if (heldout := trainer.heldout) is not None and experiment.data.test is not None:
        due = set(range(heldout.every, steps + 1, heldout.every)) | {steps}
        saves |= due  # at worst each is the best so far
        once["held-out data"], times["held-out data"] = _heldout(training, heldout, seconds, timed), len(due)
    times["checkpoint"] = len(saves)
    for hook in trainer.hooks:
        name = _named(type(hook).__name__, once)
        once[name] = timed(functools.partial(training._hook, hook))
        times[name] = len({*range(hook.every, steps + 1, hook.every), steps})
    training.log.close()
    if training._claim is not None:
        training._claim.close()
    held = torch.cuda.max_memory_allocated(where) if gpu else 0
    once["end"], times["end"] = timed(lambda: load(run, modules=modules_of(experiment), device=str(where))), 1
    late = sum(warm) - mean * len(warm)
    whole = sum(once[k] * n for k, n in times.items()) + max(0.0, late)
    peak = resident()["peak"]
    copies = trainer.keep + (trainer.heldout is not None)
    return {
        "device": str(where),
        "threads": torch.get_num_threads(),
        "steps": steps,
        "steps_measured": len(measured),
        "parameters": {
            "total": sum(parameters(training.model).values()),
            "trained": size_of(training.model),
            "parts": parameters(training.model),
        },
        "memory": stood
        | {"process": peak, "before": base}
        | ({"device": held, "device_total": torch.cuda.get_device_properties(where).total_memory} if gpu else {}),
        "seconds": whole,
        "training_seconds": whole - once["start"] - once["end"],
        "once": once,
        "times": times,
        "disk": {"checkpoint": kept, "checkpoints": min(copies, len(saves) + 1) * kept},
        "amount": {
            "unit": unit,
            "step": per_step,
            "total": per_step * steps,
            "distinct": distinct(training.source, per_step / max(1, size(batches[0]))),
        },
        "flops": counted,
        "said": [text for text in voice.said if not text.startswith("Training ")],
        "patience": bool(trainer.heldout and trainer.heldout.patience),
    }


def _heldout(
    training: Training, heldout: HeldOut, seconds: float, timed: Callable[[Callable[[], object]], float]
) -> float:
    """Seconds of one measurement on held-out data: in full where that is quick, else of so many batches as are."""
    test = training.data.test
    assert test is not None
    n = min(len(test), heldout.limit or len(test))
    batches = math.ceil(n / heldout.batch)

    def measure(limit: int, also: bool) -> float:
        short = call(HeldOut, {**arguments(heldout), "limit": limit, **({} if also else {"also": None})})

        def act() -> None:
            with training.aside():
                short.measure(training.model, test, training.seed, training.device)

        return timed(act)

    first = measure(1, also=False)
    if batches * first <= max(seconds, 2 * first):
        return measure(n, also=True)
    some = max(1, min(batches, int(seconds / first)))
    once = measure(some * heldout.batch, also=False) / some * batches
    if heldout.also is None:
        return once
    return once + max(0.0, measure(1, also=True) - first)


def _named(name: str, taken: Mapping[str, float]) -> str:
    while name in taken:
        name += "'"
    return name


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
