"""`morphogen play`: an agent at work, filmed; and what `evaluate` says of one: the returns of fresh episodes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from . import recipe as recipes
from .context import Context
from .sample import load_run

if TYPE_CHECKING:
    from ..experiment import Run
    from ..rl.env.env import Env


def is_agent(run: Run) -> bool:
    """Whether the run's model acts in environments of its own."""
    return not isinstance(_home(run), str)


def home(run: Run) -> Env:
    """The environments that a run's agent was trained in. UserError where it does not act."""
    found = _home(run)
    if isinstance(found, str):
        raise UserError(f"The run {str(run.path)!r} {found}.")
    return found


def _home(run: Run) -> Env | str:
    """The environments of a run's agent, or why there are none."""
    from ..core import Acts, can
    from ..rl.play import environment

    if not can(run.model, Acts):
        return (
            f"is a {type(run.model).__name__}, which does not act: `morphogen sample` and `evaluate` are for it, and"
            " `play` for agents (such as `morphogen train gridworld`)"
        )
    return environment(run.data.train) or (
        f"was trained on a {type(run.data.train).__name__}, which has no environment to play in: train the agent from"
        " Online, Rollouts or Replay"
    )


def manner(greedy: bool, sample: bool, limit: int | None) -> bool | None:
    """Whether to act without chance by two flags; None is the agent's own way. UserError for a wrong limit too."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit} ends an episode before it began: give 1 or more steps.")
    if greedy and sample:
        raise UserError("--greedy and --sample exclude each other: give one of them, or neither for the agent's way.")
    return True if greedy else False if sample else None


def title(env: Env) -> str:
    """What to call environments: as gymnasium does, or by what makes the task."""
    from ..rl.env import Simulated
    from ..spec import arguments, maker

    if isinstance(env, Simulated):
        return maker(env.task).__name__
    return str(arguments(env).get("name", type(env).__name__))  # type: ignore[arg-type]


# ---- returns -------------------------------------------------------------------------------------------------------


def agent_page(
    context: Context,
    run: Run,
    n: int | None,
    greedy: bool | None,
    seed: int,
    limit: int | None = None,
    idle: Sequence[str] = (),
) -> dict[str, Any]:
    """The page of `evaluation.json` of an agent: n fresh episodes, 100 where None. idle: flags that an agent has no use
    for. Raises UserError where there are any, and where the run's model does not act.
    """
    from .. import __version__
    from ..metrics.returns import return_measures
    from ..rl.env import Rated
    from ..rl.play import AT_ONCE, another, play, usually_greedy
    from .receipts import command, machine, now

    n = 100 if n is None else n
    task = home(run)
    context.options([], type(run.model).__name__)
    if idle:
        raise UserError(f"{' and '.join(idle)} measure samples, and {str(run.path)!r} is an agent's run: leave it out.")
    if n < 2:
        raise UserError(f"--n {n} makes no interval of episodes: take 2 or more, better 100.")
    began, device = time.perf_counter(), run.device
    env = another(task, min(n, AT_ONCE), limit=limit)
    greedy = usually_greedy(run.model) if greedy is None else greedy
    context.tell.note(f"Playing {n} episodes of {title(env)}, {_acting(greedy)} …")
    with context.tell.progress("episode", n) as progress:
        played = play(run.model, env, n, seed=seed, greedy=greedy, device=device, progress=progress)
    returns, lengths = played.returns.tolist(), played.lengths.tolist()
    return {
        "run": str(run.path),
        "step": run.step,
        "ema": run.average,
        "seed": seed,
        "episodes": n,
        "environment": title(env),
        "environments": env.envs,
        "limit": limit,
        "acting": "greedy" if greedy else "sampled",
        "rated": dict(env.rated()) if isinstance(env, Rated) else {},
        "measures": {k: m._asdict() for k, m in return_measures([returns], [lengths], seed=seed).items()},
        "heldout": {},
        "returns": returns,
        "lengths": lengths,
        "seconds": round(time.perf_counter() - began, 3),
        "machine": machine(str(device)),
        "command": command(context.typed),
        "morphogen": __version__,
        "at": now(),
    }


def _acting(greedy: bool) -> str:
    return "without chance" if greedy else "sampling actions"


def over_seeds(pages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several runs of one recipe come to together: the score of each is its mean return."""
    from ..metrics.returns import return_measures

    first = pages[0]
    found = return_measures([p["returns"] for p in pages], [p["lengths"] for p in pages], seed=first["seed"])
    shared = {k: first[k] for k in ("seed", "episodes", "environment", "environments", "limit", "acting", "rated")}
    return {"runs": [p["run"] for p in pages], **shared, "measures": {k: m._asdict() for k, m in found.items()}}


def played(page: dict[str, Any]) -> str:
    """What was played, in a line."""
    many = page.get("runs")
    who = f"{len(many)} runs" if many else f"{page['run']}, step {page['step']}"
    average = f", average {page['ema']}" if page.get("ema") not in (None, "live") else ""
    episodes = f"{page['episodes']} episodes{' each' if many else ''} of {page['environment']}"
    return f"{who}{average}, {episodes} of seed {page['seed']}, {_acting(page['acting'] == 'greedy')}"


# ---- films ---------------------------------------------------------------------------------------------------------

_SEEN_AT_ONCE, _WIDE, _WIDEST = 36, 320, 2048  # pictures on a sheet; pixels of one across, unless asked; at most


def play(
    context: Context,
    run: Path,
    *,
    film: Path | bool | None = None,
    episodes: int = 1,
    greedy: bool = False,
    sample: bool = False,
    limit: int | None = None,
    fps: int = 30,
    every: int = 1,
    size: int | None = None,
    seed: int = 0,
    checkpoint: str = "newest",
    ema: str | None = None,
    device: str | None = None,
    with_: tuple[Path, ...] = (),
) -> None:
    """Let an agent play in its environment, tell the return, and film it.

    run: the folder of the run. film: write a film: FILE.gif, or FILE.mp4 (pip install 'morphogen[film]'); without a
    name, play-SEED.gif in the run. episodes: how many to play, beside one another, on one sheet of the film.
    greedy: let it act without chance. sample: let it draw its actions (default: as its paper judges it).
    limit: steps after which an episode is cut off (default: the environment's own). fps: pictures a second.
    every: film one step of so many. size: how wide a picture is in pixels (default: as the environment draws it, at
    most 320). seed: of what happens. checkpoint: newest, best or a step. ema: which averaged weights, by decay or
    length, or live (default: the run's first average). device: cpu, cuda, …. with_: files that define classes of yours
    which the run uses.
    """
    acting = manner(greedy, sample, limit)
    if size is not None and size > _WIDEST:
        raise UserError(f"--size {size} is too wide for a film: take {_WIDEST} pixels at most.")
    for name, value, such in (
        ("episodes", episodes, "1"),
        ("fps", fps, "30"),
        ("every", every, "1"),
        ("size", size, "320"),
    ):
        if value is not None and value < 1:
            raise UserError(f"--{name} {value} shows nothing: take 1 or more, such as --{name} {such}.")
    path = run / f"play-{seed}.gif" if film is True else film or None
    if path is not None:
        from ..data.film import film_path

        film_path(path)
        if episodes > _SEEN_AT_ONCE:
            raise UserError(f"--episodes {episodes} are too many for a sheet: film {_SEEN_AT_ONCE} at most.")
    loaded = load_run(context, run, checkpoint, device, recipes.load_files(with_), ema)
    from ..rl.env import Pictured
    from ..rl.play import AT_ONCE, another, usually_greedy
    from ..rl.play import play as played_out

    task = home(loaded)
    env = another(task, episodes if path else min(episodes, AT_ONCE), limit=limit, drawn=path is not None)
    if path is not None and not isinstance(env, Pictured):
        raise UserError(f"{title(env)} has no picture of itself: leave --film out.")
    acting = usually_greedy(loaded.model) if acting is None else acting
    reel = Reel(every, size)
    with context.tell.progress("episode", episodes) as progress:
        found = played_out(
            loaded.model,
            env,
            episodes,
            seed=seed,
            greedy=acting,
            device=loaded.device,
            progress=progress,
            watch=reel.watch if path else lambda env, over: None,
        )
    if path is not None:
        reel.write(path, fps)
    returns, lengths = found.returns.tolist(), found.lengths.tolist()
    mean = sum(returns) / episodes
    said = (
        f"return {mean:.6g}, {lengths[0]} steps"
        if episodes == 1
        else f"mean return {mean:.6g}, from {min(returns):.6g} to {max(returns):.6g}"
    )
    fields = {"run": str(run), "step": loaded.step, "ema": loaded.average, "seed": seed, "environment": title(env)}
    fields |= {"acting": "greedy" if acting else "sampled", "returns": returns, "lengths": lengths}
    fields |= {"files": [] if path is None else [str(path)]}
    many = "1 episode" if episodes == 1 else f"{episodes} episodes"
    shown = "" if path is None else f"; filmed in {path}"
    context.tell.answer(
        "played", fields, f"{many} of {title(env)} (seed {seed}, step {loaded.step}, {_acting(acting)}): {said}{shown}"
    )


class Reel:
    """Keeps a picture of every so many steps: a sheet of all environments, on which those that are over stand still."""

    def __init__(self, every: int, size: int | None) -> None:
        self.every, self.size, self.frames, self.count = every, size, list[Any](), 0
        self._last: list[Any] = []
        self._over: list[bool] = []

    def watch(self, env: Any, over: Any) -> None:
        """The environments after a step, and which of them have played all their episodes (B,)."""
        from ..data.space import grid

        ended = over.tolist()
        last = self.count and ended != self._over  # an end is always shown
        if self.count % self.every == 0 or last:
            still = self._over or [False] * len(ended)
            self._last = [
                old if done else self._sized(env.draw(i))
                for i, (done, old) in enumerate(zip(still, self._last or ended, strict=True))
            ]
            self.frames.append(self._last[0] if len(ended) == 1 else grid(self._last))
        self._over, self.count = ended, self.count + 1

    def _sized(self, picture: Any) -> Any:
        wide, high = picture.size
        size = self.size or min(wide, _WIDE)
        if size == wide:
            return picture
        from PIL import Image

        way = Image.Resampling.LANCZOS if size < wide else Image.Resampling.NEAREST
        return picture.resize((size, max(1, round(high * size / wide))), way)

    def write(self, path: Path, fps: int) -> None:
        """The film."""
        from ..data.film import film

        path.parent.mkdir(parents=True, exist_ok=True)
        film(self.frames, path, 1 / fps, back=False)
