"""The loop: one trainer for every model.

    batch = source.next(model, heard);  for each due turn:  loss = model(batch, phase) -> backward -> step -> after_step

`Trainer` is the configuration, `Training` the live thing that a checkpoint can hold whole. Each step reseeds the
default generator with fold(seed, step, rank), so nothing random is saved and any step can be replayed alone.

With pieces i of a batch (`micro`) and denominators k, what is differentiated is the sum over i, k of
    value[i][k] * counts[i][k] / sum_j counts[j][k],
the whole batch's own gradient whatever the split. So a turn that runs out of memory is taken again in smaller pieces.

NaN and Inf: loss and gradient norm of every turn are watched on the device. On a CPU they are read before the
optimiser moves. Elsewhere the update is switched off on the device where they are not finite, and the flag is read
one turn late, when the device has long moved on; either way no bad number reaches weights or checkpoint. The turn
is then replayed from its kept batch and seed to name the first bad tensor and the data it came from.
"""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor, nn

from .average import Average, Rule, averages, rules_of, snapshot
from .checkpoint import Checkpoints, claim, of_rank, pack, unpack
from .core import (
    Batch,
    Lives,
    Loss,
    Model,
    Phase,
    Place,
    Source,
    State,
    Update,
    beneath,
    each,
    fold,
    parameters,
    size,
)
from .device import PRECISIONS, choose_device, compiler_works, products, recompute
from .disk import make, sync_names
from .errors import UserError, out_of_memory, unknown
from .experiment import Data, fit_weights, fitting
from .heldout import HeldOut
from .hooks import Hook, Voice, voice_for
from .log import Log, Unwritten
from .optim import ELEMENTWISE, AdamW, Constant, Optim, optimiser_state, restore_optimiser
from .own import own, reasons, restore_own, source_state
from .parallel import ALONE, in_pieces, join
from .replay import NotFinite, explain
from .spec import Remembers

_ALL = " samples"  # beside the names of denominators, none of which begins so


class Stopped(Exception):
    """Training was told to stop by a signal, and has saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; the run is saved")
        self.signum = signum


class Trainer(Remembers):
    """How a model is trained.

    steps: how many steps. optim: one maker of optimisers, or one per `trains` name of the model's phases
    (`{"generator": AdamW(2e-4), "critic": AdamW(1e-4)}`; several names of one phase joined by "+").
    micro: samples per piece of a batch: less memory, the same gradient; where memory runs out smaller
    ones are taken. clip: largest gradient norm.
    dtype: "float32", or "bfloat16" for autocast in the forward pass. ema: averaged weights for sampling; of several the
    first is what pictures, held-out data and `load` take unless told otherwise.
    heldout: what to measure on held-out data and how often. hooks: what else to do now and then (pictures).
    save_every, keep: checkpoints. log_every: lines of the log. recompute: gradient checkpointing of every module
    marked `recomputable`. compile: `torch.compile` the nets in place (without a compiler: eagerly, and said once).
    matmul: torch's `float32_matmul_precision` while it trains; "high" rounds factors to TF32 on a GPU, "medium" takes
    oneDNN's products on a CPU and rounds factors to bfloat16 where the processor has tiles for that.
    """

    def __init__(
        self,
        steps: int,
        *,
        optim: Optim | Mapping[str, Optim] = AdamW(),  # noqa: B008  (immutable)
        micro: int | None = None,
        clip: float | None = None,
        dtype: str = "float32",
        ema: Rule | Sequence[Rule] | None = None,
        heldout: HeldOut | None = None,
        hooks: Sequence[Hook] = (),
        save_every: int = 500,
        keep: int = 2,
        log_every: int = 50,
        recompute: bool = False,
        compile: bool = False,
        matmul: str = "highest",
    ) -> None:
        for name, count in {"steps": steps, "save_every": save_every, "log_every": log_every, "keep": keep}.items():
            if not isinstance(count, int):
                raise UserError(f"A Trainer's {name} is {count!r}: give a whole number.")
        if steps < 1 or save_every < 1 or log_every < 1 or keep < 1 or (micro is not None and micro < 1):
            raise UserError("A Trainer's steps, save_every, log_every, keep and micro must each be at least 1.")
        if clip is not None and clip <= 0:
            raise UserError(
                f"A Trainer's clip is the largest gradient norm, not {clip}: give a number above 0, or None."
            )
        if idle := [type(hook).__name__ for hook in hooks if hook.every < 1]:
            raise UserError(f"The hook {idle[0]} is never due: its `every` must be at least 1.")
        if dtype not in ("float32", "bfloat16"):
            raise unknown("training dtype", str(dtype), ("float32", "bfloat16"))
        if matmul not in PRECISIONS:
            raise unknown("precision of products", str(matmul), PRECISIONS)
        self.steps, self.optim, self.micro, self.clip, self.dtype = steps, optim, micro, clip, dtype
        self.ema = rules_of(ema)
        self.heldout, self.hooks, self.log_every = heldout, hooks, log_every
        self.save_every, self.keep = save_every, keep
        self.recompute, self.compile, self.matmul = recompute, compile, matmul

    def fit(
        self,
        model: Model,
        data: Data,
        *,
        run: str | Path,
        seed: int = 0,
        device: str | torch.device | None = None,
        voice: Voice | None = None,
        until: int | None = None,
        shard: bool = False,
    ) -> Training:
        """Train `model` in place on `data`, in the run folder `run`; what is already there is continued.

        device: chosen automatically where None. until: stop (and save) after this step, as if interrupted. shard: of
        several processes each holds a piece of the weights.
        Raises NotFinite, Stopped (after saving), and UserError.
        """
        where = choose_device(device)
        training = Training(self, model, data, Path(run), seed=seed, device=where, voice=voice, shard=shard)
        with training.ranks.watched(), products(self.matmul):
            training.begin()
            training.loop(self.steps if until is None else min(until, self.steps))
        return training


class Turn(NamedTuple):
    """A phase or update with what the loop needs to run it."""

    name: str
    every: int
    params: list[nn.Parameter]
    optimisers: list[torch.optim.Optimizer]
    schedule: Callable[[int, int], float] | None
    held: list[nn.Parameter]  # the model's parameters; `params` are what of them this process trains


class Suspect(NamedTuple):
    """A turn whose numbers have not been read yet."""

    step: int
    turn: Turn
    batch: Batch
    bad: Tensor


class Training:
    """A training in progress: model, optimisers, averages, source and log, all that a checkpoint holds.

    Attributes for hooks: model, data, run, step, seed, device, voice, log, and `averaged()`.
    """

    def __init__(
        self,
        trainer: Trainer,
        model: Model,
        data: Data,
        run: Path,
        *,
        seed: int,
        device: torch.device,
        voice: Voice | None,
        shard: bool = False,
    ) -> None:
        self.ranks = join()
        self.seed, self.device, self.rank = seed, self.ranks.device(device), self.ranks.rank
        self.shard = shard and not self.ranks.alone
        self.trainer, self.data, self.run = trainer, data, run
        self.model = model if self.shard else model.to(self.device)  # in pieces it may be larger than a device
        self.voice = Voice() if self.rank else voice or voice_for()  # rank 0 speaks for all
        self.step = 0
        self.heard: Mapping[str, Loss] = {}
        self.source: Source = data.train
        self.checkpoints = Checkpoints(run, trainer.keep)
        self.log = Unwritten() if self.rank else Log(run / "log.jsonl")
        self.micro = trainer.micro  # or less, where memory ran out
        self.best: dict[str, Any] = {}  # {"step", "value"} of the held-out metric
        self.stop_early = False
        self.signal = self._asked = 0  # the signal that ends the training; the one that this process was sent
        self._saved = -1  # the step of the newest checkpoint that this process wrote or read
        self._arm()
        self._suspect: Suspect | None = None
        self._cpu = device.type == "cpu"
        self._generators = [torch.default_generator] + (
            [torch.cuda.default_generators[torch.empty(0, device=device).get_device()]] if device.type == "cuda" else []
        )

    # ---- setting up

    def _arm(self) -> None:
        """What is trained, by which optimisers, and its averages."""
        self.names = {self.ranks.own(p): n for n, p in self.model.named_parameters()}
        self.turns = self._turns(self.model.phases())
        self.averages = averages(self.trainer.ema, self.model, self.ranks.own)
        self._all = [p for p in self.model.parameters() if p.requires_grad]
        self._buffers = list(self.model.buffers())
        self._partial = any(len(t.params) < len(self._all) for t in self.turns if t.optimisers)

    def _take_apart(self) -> None:
        """Leave this rank its piece of the weights only."""
        self.ranks = in_pieces(self.ranks, self.model, self.device)
        self._arm()
        if odd := [type(o).__name__ for o in self._optimisers() if not isinstance(o, ELEMENTWISE)]:
            raise UserError(
                f"{odd[0]} is not known to treat each number by itself, and of weights in pieces it would see some rows"
                " only: train with AdamW or SGD, or leave --shard out."
            )

    def _turns(self, phases: Sequence[Phase | Update]) -> list[Turn]:
        made: dict[tuple[str, ...], Turn] = {}
        turns = []
        for phase in phases:
            f = phase.loss if isinstance(phase, Phase) else phase.rule
            name = getattr(f, "__name__", "")
            if getattr(f, "__self__", None) is not self.model or not name:
                raise UserError(
                    f"A phase of {type(self.model).__name__} is {f!r}: give a method of the model itself (self.loss)."
                )
            if phase.every < 1:
                raise UserError(f"The phase {name!r} of {type(self.model).__name__} must have every=1 or more.")
            if isinstance(phase, Update):
                turns.append(Turn(name, phase.every, [], [], None, []))
                continue
            if phase.trains not in made:
                held, maker = self._named(phase.trains), self._maker(phase.trains)
                named = {n: self.ranks.own(p) for n, p in held.items()}
                params, schedule = list(named.values()), maker.schedule
                constant = isinstance(schedule, Constant) and schedule.warmup == 0
                made[phase.trains] = Turn(
                    "", 1, params, maker.make(named), None if constant else schedule, list(held.values())
                )
            turns.append(made[phase.trains]._replace(name=name, every=phase.every))
        for optimiser in (o for t in turns for o in t.optimisers):
            for group in optimiser.param_groups:
                group.setdefault("initial_lr", group["lr"])
        return turns

    def _named(self, trains: tuple[str, ...]) -> dict[str, nn.Parameter]:
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        for prefix in trains:
            if prefix and not any(n == prefix or n.startswith(prefix + ".") for n in named):
                raise unknown("trained part", prefix, {n.partition(".")[0] for n in named})
        picked = {n: p for n, p in named.items() if any(t in ("", n) or n.startswith(t + ".") for t in trains)}
        if not picked:
            raise UserError(f"{type(self.model).__name__} has a phase but no parameter to train: use Update instead.")
        return picked

    def _maker(self, trains: tuple[str, ...]) -> Optim:
        if not isinstance(self.trainer.optim, Mapping):
            return self.trainer.optim
        name = "+".join(trains)
        if name not in self.trainer.optim:
            raise unknown("optimiser for the phase that trains", name, self.trainer.optim)
        return self.trainer.optim[name]

    def begin(self) -> None:
        """Start afresh, or continue what the run folder holds; says which."""
        self._claim = self.ranks.once(self._take_run)
        self.source.start(Place(self.rank, self.ranks.count, self.device, self.seed))
        self.ranks.equalise(self.model)
        self._prepare_nets()
        self.model.train()
        if self.trainer.heldout is not None and self.data.test is None:
            self.voice.say("There is no held-out data, so nothing is measured on it: give Data(train, test).")
        found = self._newest()
        if found is None:
            self.log.open(after=-1)
            self._start_model()
            if self.shard:
                self._take_apart()
            else:
                self.averages = averages(self.trainer.ema, self.model)  # of the weights as the start has left them
            self.save()
            n = sum(parameters(self.model).values())
            threads = torch.get_num_threads()
            where = f"cpu, {threads} thread{'s' * (threads > 1)}" if self._cpu else str(self.device)
            self.voice.say(f"Training {type(self.model).__name__} ({n:,} parameters) on {where} into {self.run}.")
        else:
            step, parts = found
            if self.shard:
                self._take_apart()
            self.restore(step, parts)
            self.log.open(after=step)
            if step == self.trainer.steps or self.stop_early:
                self.voice.say(f"{self.run} is finished: all it has to do was done at step {step}.")
            else:
                self.voice.say(f"Continuing {self.run} after step {step} of {self.trainer.steps} on {self.device}.")

    def _take_run(self) -> IO[str]:
        make(self.run)
        held = claim(self.run)
        sync_names(self.run)
        return held

    def _newest(self) -> tuple[int, dict[str, Any]] | None:
        """The checkpoint to go on from: rank 0 chooses it."""
        found = self.ranks.once(lambda: self.checkpoints.newest(self.voice.say))
        step = self.ranks.tell(found and found[0])[0]
        return found if found or step is None else (step, self.checkpoints.load(step))

    def _start_model(self) -> None:
        if type(self.model).start is Model.start:
            return
        self.reseed(1, rank=0)  # the batch of step 1, and a start that is a function of the seed
        kept: dict[str, Tensor] = {}
        state = source_state(self.source)
        page = pack(state, kept)
        before = unpack(page, {n: t.clone() for n, t in kept.items()})  # the source may go on in the same memory
        self._start_with(self._next(1))
        if not reasons(state):
            self.source.restore(before["state"])  # step 1 sees the same batch again

    def _start_with(self, batch: Batch) -> None:
        """Every rank starts the model with the whole batch, and so alike."""
        batch = self.ranks.whole(batch)
        if self.shard:  # the model is not on a device yet
            batch = each(batch, Tensor.cpu)
        with self.ranks.apart():
            self.model.start(batch)

    def _prepare_nets(self) -> None:
        if self.trainer.recompute:
            for module in self.model.modules():
                if getattr(module, "recomputable", False):
                    recompute(module)
        if self.trainer.compile:
            if compiler_works():
                for child in self.model.children():
                    child.compile()
            else:
                self.voice.say("No working compiler was found for torch.compile, so everything runs eagerly.")

    # ---- the loop

    def loop(self, last: int) -> None:
        """Take steps until `last` (or early stopping, or a signal), saving, logging and measuring on the way."""
        trainer = self.trainer
        heldout = trainer.heldout if self.data.test is not None else None
        with self._signals(), self.voice.steps(self.step, trainer.steps):
            while self.step < last and not self.stop_early and not self._told():
                self.advance()
                step, final = self.step, self.step == trainer.steps
                save = step % trainer.save_every == 0
                logged = step % trainer.log_every == 0 or final
                if logged:
                    self._log_line()
                if heldout is not None and (step % heldout.every == 0 or final):
                    save = self._measure(heldout) or save
                    final = final or self.stop_early
                    if final and not logged:
                        self._log_line()
                self.voice.advance(step)
                for hook in trainer.hooks:
                    if step % hook.every == 0 or final:
                        self._hook(hook)
                if save and not final:
                    self.save()
            self.watch_read()
            self.save()
            self._told()
        self.log.close()
        if self._claim is not None:
            self._claim.close()
        if self.signal:
            raise Stopped(self.signal)

    def _told(self) -> int:
        """The signal that this process or another of the run was sent; 0 where there was none."""
        before, self.signal = self.signal, self.ranks.most(self._asked)
        if self.signal and not before and not self.ranks.alone:
            self._say_stopping(self.signal)
        return self.signal

    def _say_stopping(self, signum: int) -> None:
        self.voice.say(f"Heard {signal.Signals(signum).name}: finishing this step and saving.")

    def advance(self) -> None:
        """One step: the next batch, and every due turn on it."""
        step = self.step + 1
        self.model.step = self.step
        self.reseed(step)
        batch = self._next(step)
        heard = {}
        for turn in self.turns:
            if step % turn.every == 0:
                said = self._differentiate(step, turn, batch) if turn.optimisers else self._update(turn, batch)
                self.model.after_step(turn.name, said.seen)
                heard[turn.name] = said
        self.heard = heard
        self.step = step
        for average in self.averages:
            average.update(step)
        snapshot(self.averages, self.run, step, self.ranks)

    def reseed(self, step: int, rank: int | None = None) -> None:
        """Seed the default generators for `step`: randomness is a function of (seed, step, rank)."""
        value = fold(self.seed, step, self.rank if rank is None else rank)
        for generator in self._generators:
            generator.manual_seed(value)

    def _next(self, step: int) -> Batch:
        batch = self.source.next(self.model, self.heard)
        return batch if self._cpu else each(batch, lambda t: t.to(self.device, non_blocking=True))

    def _forward(self, piece: Batch, name: str) -> Loss:
        if self.trainer.dtype == "float32":
            said: Loss = self.model(piece, name)
        else:
            with torch.autocast(self.device.type, torch.bfloat16):
                said = self.model(piece, name)
        model = type(self.model).__name__
        if not isinstance(said, Loss):
            raise UserError(f"{model}.{name} returned a {type(said).__name__}: return a Loss(value).")
        for value in [said.value] if isinstance(said.value, Tensor) else said.value.values():
            if value.ndim:
                raise UserError(f"{model}.{name} returned a loss of shape {tuple(value.shape)}: return its mean().")
        return said

    def _differentiate(self, step: int, turn: Turn, batch: Batch) -> Loss:
        said = self._fitting(step, turn, batch)
        grads = [p.grad for p in turn.params if p.grad is not None]
        if not grads:
            raise self._no_gradient(turn)
        norm, value = self._watch(step, turn, batch, said, grads)
        if self.trainer.clip is not None:
            _clip(grads, norm, self.trainer.clip)
        if turn.schedule is not None:
            factor = turn.schedule(step, self.trainer.steps)
            for optimiser in turn.optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = group["initial_lr"] * factor
        for optimiser in turn.optimisers:
            optimiser.step()
        for p in turn.params:
            p.grad = None
        name = "" if turn.name == "loss" else turn.name + "."
        self.log.tally(name + "loss", value)
        self.log.tally(name + "grad_norm", norm)
        for key, log in said.logs.items():
            self.log.tally(name + key, log)
        if not isinstance(said.value, Tensor):
            for key, part in said.value.items():
                self.log.tally(f"{name}loss.{key}", part)
        return said

    def _fitting(self, step: int, turn: Turn, batch: Batch) -> Loss:
        """`backward`, in pieces of half the size until they fit into memory: the same gradient, said once."""
        before, versions = self.micro, [b._version for b in self._buffers]
        while True:
            try:
                said = self.backward(turn, batch)
                break
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or not self.ranks.alone:
                    raise  # other ranks wait for this one's part, and cannot be told to begin again
                fault = self._smaller(turn, batch, versions == [b._version for b in self._buffers])
            if fault:  # out of the except clause: its traceback holds what is in memory
                raise fault
            for p in turn.params:
                p.grad = None
            if not self._cpu:
                torch.accelerator.empty_cache()
            self.reseed(step)
        if self.micro != before:
            self.voice.say(
                f"Memory ran out at step {step}: batches are taken in pieces of {self.micro} from here on, which"
                f" changes no gradient (Trainer(micro={self.micro}) does so from the start)."
            )
        return said

    def _smaller(self, turn: Turn, batch: Batch, untouched: bool) -> UserError | None:
        """Halve the pieces; where that cannot help, why not. untouched: the failed pass has changed no buffer."""
        pieces = min(self.micro or size(batch), size(batch))
        why = None
        if not self.model.counts(batch):
            why = "its loss is over the whole batch at once: take a smaller batch or net, or recompute=True."
        elif not untouched:
            why = "its forward pass changes buffers, so it is not taken again: set Trainer(micro=…), or a smaller net."
        elif pieces == 1:
            why = "and one sample alone does not fit: take a smaller net, or Trainer(recompute=True)."
        else:
            self.micro = pieces // 2
        return UserError(f"Memory ran out in phase {turn.name!r}, {why}") if why else None

    def backward(self, turn: Turn, batch: Batch) -> Loss:
        """Gradients of what the turn trains over the whole batch; what the phase said, detached."""
        if not self._partial:
            return self._pieced(turn, batch)
        try:
            for p in self._all:
                p.requires_grad_(False)
            for p in turn.held:
                p.requires_grad_(True)
            return self._pieced(turn, batch)
        finally:
            for p in self._all:
                p.requires_grad_(True)

    def _pieced(self, turn: Turn, batch: Batch) -> Loss:
        counts = self.model.counts(batch)
        pieces = self._pieces(batch) if counts else [batch]
        if len(pieces) == 1 and self.ranks.alone:
            said = self._forward(batch, turn.name)
            value = said.value
            if isinstance(value, Tensor):
                self._descend(turn, value)
                value = value.detach()
            else:
                value = {k: v for k, v in value.items() if counts.get(k, 1)} or value  # a mean over nothing is NaN
                self._descend(turn, _total(value.values()))
                value = _detached(value)
            return Loss(value, _detached(said.logs), _detached(said.seen))
        shares = [self.model.counts(piece) for piece in pieces]
        sums = self.ranks.totals({k: sum(s[k] for s in shares) for k in counts} | {_ALL: size(batch)})
        n, even = sums.pop(_ALL), 1 / self.ranks.count
        values: dict[str, Tensor] = {}
        logs: dict[str, Tensor] = {}
        seen: dict[str, list[Tensor]] = {}
        self.ranks.entangled = self.ranks.sharded  # no rank may stay away from the gathering of weights
        for piece, share in zip(pieces, shares, strict=True):
            said = self._forward(piece, turn.name)
            parts = {"": said.value} if isinstance(said.value, Tensor) else said.value
            if counts and (unnamed := set(parts) - set(sums)):
                raise unknown("denominator", sorted(unnamed)[0], sums, "(counts must name every mean of the loss)")
            weights = {k: share[k] / sums[k] for k in parts if sums[k]} if counts else dict.fromkeys(parts, even)
            if due := [parts[k] * w for k, w in weights.items() if w or self.ranks.entangled]:
                self._descend(turn, _total(due))
            for k, w in weights.items():
                part = parts[k].detach() * w if w else torch.zeros_like(parts[k])  # a mean over nothing may be NaN
                values[k] = values[k] + part if k in values else part
            for k, v in said.logs.items():
                logs[k] = logs.get(k, 0) + v.detach() * (size(piece) / n)
            for k, v in said.seen.items():
                seen.setdefault(k, []).append(v.detach())
        self.ranks.gradients(turn.params)
        values, logs = self.ranks.sums(values), self.ranks.sums(logs)
        value = values[""] if set(values) == {""} else values
        return Loss(value, logs, {k: torch.cat(v) for k, v in seen.items()})

    def _descend(self, turn: Turn, value: Tensor) -> None:
        if not value.requires_grad:
            raise self._no_gradient(turn)
        value.backward()

    def _no_gradient(self, turn: Turn) -> UserError:
        return UserError(
            f"Phase {turn.name!r} of {type(self.model).__name__} gives no gradient to any parameter it trains:"
            " its loss is detached, or `trains` names the wrong part."
        )

    def _pieces(self, batch: Batch) -> list[Batch]:
        micro, n = self.micro, size(batch)
        if micro is None or micro >= n:
            return [batch]
        return [each(batch, lambda t, i=i: t[i : i + micro]) for i in range(0, n, micro)]  # type: ignore[misc]

    @torch.no_grad()
    def _update(self, turn: Turn, batch: Batch) -> Loss:
        said = self._forward(batch, turn.name)
        if not self.ranks.alone:
            said = self._meant(said, size(batch))
        value = said.value if isinstance(said.value, Tensor) else _total(said.value.values())
        self.watch_read()
        self._suspect = Suspect(self.step + 1, turn, batch, value.isfinite().logical_not())
        if self._cpu:
            self.watch_read()
        name = "" if turn.name == "loss" else turn.name + "."
        self.log.tally(name + "loss", value)
        for key, log in said.logs.items():
            self.log.tally(name + key, log)
        return said

    def _meant(self, said: Loss, n: int) -> Loss:
        """What an update said, its scalars as means over the samples of all ranks."""
        share = n / self.ranks.totals({_ALL: n})[_ALL]
        values = {"": said.value} if isinstance(said.value, Tensor) else said.value
        values, logs = (self.ranks.sums({k: v * share for k, v in x.items()}) for x in (values, said.logs))
        return Loss(values[""] if isinstance(said.value, Tensor) else values, logs, said.seen)

    # ---- NaN and Inf

    def _watch(
        self, step: int, turn: Turn, batch: Batch, said: Loss, grads: list[Tensor]
    ) -> tuple[Tensor | float, Tensor | float]:
        """Gradient norm and loss, seen to be finite: numbers on a CPU, where reading is free, else on the device."""
        norms = self.ranks.norms(torch._foreach_norm(grads), [p for p in turn.params if p.grad is not None])
        value = said.value if isinstance(said.value, Tensor) else _total(said.value.values())
        if self._cpu:
            norm, loss = math.hypot(*(n.item() for n in norms)), value.item()
            if not math.isfinite(norm + loss):
                raise explain(self, step, turn, batch)
            return norm, loss
        total = torch.linalg.vector_norm(torch.stack(list(norms)))
        bad = (total + value).isfinite().logical_not_()
        self.watch_read()  # the turn before this one: its numbers are there by now
        self._suspect = Suspect(step, turn, batch, bad)
        for optimiser in turn.optimisers:
            if getattr(optimiser, "_step_supports_amp_scaling", False):
                optimiser.found_inf, optimiser.grad_scale = bad.float(), None  # type: ignore[attr-defined]
            else:
                torch._foreach_mul_(grads, torch.ones_like(total).masked_fill_(bad, 0.0))
                for grad in grads:
                    grad.nan_to_num_(0.0, 0.0, 0.0)
        return total, value

    def watch_read(self) -> None:
        """Read the flag of the last turn; raises NotFinite where its numbers were bad."""
        suspect, self._suspect = self._suspect, None
        if suspect is not None and bool(suspect.bad):
            raise explain(self, suspect.step, suspect.turn, suspect.batch)

    # ---- now and then

    @property
    def average(self) -> Average | None:
        """The average meant for sampling."""
        return self.averages[0] if self.averages else None

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with averaged weights, where there are any."""
        self.ranks.settle(self.model)
        average, whole = self.average, not self.ranks.sharded
        try:
            with contextlib.nullcontext() if average is None else average.swapped() if whole else average.copied():
                yield
        finally:
            self.ranks.settle(self.model)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Evaluation mode with averaged weights; the model's modes are put back afterwards."""
        modes = {m: m.training for m in self.model.modules()}
        self.model.eval()
        try:
            with self.averaged():
                yield
        finally:
            for m, mode in modes.items():
                m.training = mode

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Inside, this process is alone: for what ranks do each at their own time."""
        held, self.ranks = self.ranks, ALONE
        try:
            with held.apart():
                yield
        finally:
            self.ranks = held

    def _hook(self, hook: Hook) -> None:
        self.watch_read()
        if self.rank == 0 or self.ranks.sharded:
            with self.aside(), self.apart():
                hook(self)

    def _log_line(self) -> None:
        lives: Lives | None = beneath(self.source, Lives)
        line = self.log.line(self.step, {} if lives is None else {"env_steps": lives.env_steps})
        self.voice.report(self.step, line)

    def _measure(self, heldout: HeldOut) -> bool:
        """Measure the held-out data; whether this is the best so far (and so to be saved)."""
        self.watch_read()
        assert self.data.test is not None
        with self.aside(), self.apart() if self.ranks.sharded else contextlib.nullcontext():
            measured = heldout.measure(self.model, self.data.test, self.seed, self.device, self.ranks)
        heldout.check(measured)
        gap = {}
        if "loss" in measured and (train := self.log.latest("loss")) is not None:
            gap = {"gap": measured["loss"] - train}
        line = {"step": self.step, "heldout": measured} | gap
        self.log.write(line)
        self.voice.heldout(self.step, measured, heldout.metric)
        value = measured[heldout.metric]
        if not self.best or heldout.better(value, self.best["value"]):
            self.best = {"step": self.step, "value": value, "metric": heldout.metric}
            return True
        waited = (self.step - self.best["step"]) // heldout.every
        if heldout.patience is not None and waited >= heldout.patience:
            self.stop_early = True
            self.voice.say(
                f"Stopping early at step {self.step}: held-out {heldout.metric} has not improved for {waited} rounds"
                f" (best {self.best['value']:.4g} at step {self.best['step']})."
            )
        return False

    # ---- saving and restoring

    def state(self) -> tuple[dict[str, State], dict[str, Tensor]]:
        """All that training can change, by part, and the tensors it leaves alone."""
        fixed = {n for n, p in self.model.named_parameters(remove_duplicate=False) if not p.requires_grad}
        weights = self.model.state_dict()
        optim = {str(i): optimiser_state(o, self.names) for i, o in enumerate(self._optimisers())}
        parts: dict[str, State] = {
            "model": {n: t for n, t in weights.items() if n not in fixed},
            "optim": optim,
            "source": source_state(self.source),
            "loop": {
                "heard": {k: list(v) for k, v in self.heard.items()},
                "best": self.best,
                "stop_early": self.stop_early,
                "micro": self.micro,
                "tally": self.log.state(),
            },
        }
        parts |= {average.part: dict(average.mean) for average in self.averages}
        return parts, {n: t for n, t in weights.items() if n in fixed}

    def save(self) -> None:
        """Write a checkpoint of this step, unless it is there already."""
        self.watch_read()
        if self.step == self._saved:
            return
        if self.step:
            self._check_weights()
        self.log.flush()
        parts, frozen = self.state()
        if not self.ranks.alone:
            parts = self.ranks.piecewise(parts)
            parts["loop"]["ranks"], mine = self.ranks.count, own(self, parts)
            if self.rank:
                parts, frozen = {of_rank(self.rank): mine}, {}
        self.checkpoints.save(self.step, parts, frozen, self.best.get("step"), self.ranks)
        self._saved = self.step

    def _check_weights(self) -> None:
        """Raise NotFinite where the last update overflowed although loss and gradients were finite."""
        trained = list(dict.fromkeys(p for t in self.turns for p in t.params))
        if not trained:
            return
        fine = torch.stack([p.isfinite().all() for p in trained])
        bad = None if fine.all() else self.names[trained[int(fine.int().argmin())]]
        if self.ranks.sharded:
            bad = next((name for name in self.ranks.tell(bad) if name), None)
        if bad:
            kept = self.checkpoints.steps()
            raise NotFinite(
                f"Step {self.step}: the update of {bad!r} overflowed, and is not saved (last checkpoint: step"
                f" {kept[-1] if kept else 'none'}): lower the learning rate, or set clip=1.0."
            )

    def restore(self, step: int, parts: dict[str, Any]) -> None:
        """Continue from a checkpoint's parts."""
        self.step = self.model.step = self._saved = step
        parts = self.ranks.mine(parts)
        fit_weights(self.model, parts, step)
        with fitting(step):
            self._take_up(parts)

    def _take_up(self, parts: dict[str, Any]) -> None:
        for i, optimiser in enumerate(self._optimisers()):
            restore_optimiser(optimiser, self.names, parts["optim"][str(i)])
        for average in self.averages:
            for name, mean in average.mean.items():
                mean.copy_(parts[average.part][name])
        restore_own(self, parts)
        loop = parts["loop"]
        self.best, self.stop_early = loop["best"], loop["stop_early"]
        self.micro = loop.get("micro", self.micro)  # checkpoints before version 0.3 do not say it
        self.log.restore(loop["tally"])

    def _optimisers(self) -> list[torch.optim.Optimizer]:
        unique: dict[int, torch.optim.Optimizer] = {}
        for turn in self.turns:
            for optimiser in turn.optimisers:
                unique[id(optimiser)] = optimiser
        return list(unique.values())

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def hear(signum: int, _frame: Any) -> None:
            if self._asked:
                raise KeyboardInterrupt  # asked twice: stop at once; the last checkpoint stands
            self._asked = signum
            if self.ranks.alone:
                self._say_stopping(signum)

        try:
            before = {s: signal.signal(s, hear) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: the caller's signals are the caller's
            before = {}
        try:
            yield
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)


def _total(values: Iterable[Tensor]) -> Tensor:
    total: Tensor | None = None
    for v in values:
        total = v if total is None else total + v
    assert total is not None, "a loss without any value"
    return total


def _clip(grads: list[Tensor], norm: Tensor | float, most: float) -> None:
    """Scale the gradients to a norm of at most `most` (Pascanu et al. 2013, arXiv:1211.5063)."""
    if isinstance(norm, Tensor):
        torch._foreach_mul_(grads, (most / (norm + 1e-6)).clamp(max=1.0).nan_to_num(0.0))  # a bad norm: they are zero
    elif norm > most:
        torch._foreach_mul_(grads, most / norm)


def _detached(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach() for k, v in values.items()}
