"""The state of one of gymnasium's environments, read and written, where all of it can be.

    classic control, toy text   what the environment has written into itself: numbers, arrays, and tuples of them
    MuJoCo                      that; what the next step integrates from (mjSTATE_INTEGRATION); and what the last step
                                left behind that an environment reads before its next
    each                        its generator of random numbers

Box2D's bodies have no such state (contacts and the solver's memory of them cannot be written back), and of other
environments one cannot know.
"""

from __future__ import annotations

import importlib
import json
from typing import Any

import numpy as np
import torch

from ...core import CannotRestore, State

_PLAIN = ("gymnasium.envs.classic_control.", "gymnasium.envs.toy_text.")
_MUJOCO = "gymnasium.envs.mujoco."
_LEFT = (  # of mjData: what environments look at between two steps, which is of the last substep's beginning
    "cfrc_ext", "cinert", "cvel", "geom_xpos", "qfrc_actuator", "qfrc_constraint", "sensordata", "site_xpos",
    "subtree_com", "xipos", "xmat", "xpos", "xquat",
)  # fmt: skip


def read(env: Any, name: str) -> State:
    """The state of an environment without wrappers. Raises CannotRestore, calling it `name`, where there is none."""
    where = type(env).__module__
    if where.startswith("gymnasium.envs.box2d."):
        raise CannotRestore(f"the environments {name!r} begin new episodes: Box2D's contacts cannot be saved.")
    if not where.startswith((*_PLAIN, _MUJOCO)):
        raise CannotRestore(f"the environments {name!r} of gymnasium begin new episodes: their state is their own.")
    own = {k: _written(v) for k, v in vars(env).items() if _can_be_written(v)}
    state: State = {"own": own, "random": json.dumps(env.np_random.bit_generator.state)}
    if where.startswith(_MUJOCO):
        mujoco: Any = importlib.import_module("mujoco")
        whole = np.empty(mujoco.mj_stateSize(env.model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(env.model, env.data, whole, mujoco.mjtState.mjSTATE_INTEGRATION)
        left = {k: torch.from_numpy(np.array(getattr(env.data, k))) for k in _LEFT}
        state["physics"] = {"whole": torch.from_numpy(whole), "left": left}
    return state


def write(env: Any, state: State) -> None:
    """Put an environment, which has been reset, into a state."""
    for k, v in state["own"].items():
        setattr(env, k, _restored(v))
    env.np_random.bit_generator.state = json.loads(state["random"])
    if "physics" in state:
        mujoco: Any = importlib.import_module("mujoco")
        whole = state["physics"]["whole"].cpu().numpy()
        mujoco.mj_setState(env.model, env.data, whole, mujoco.mjtState.mjSTATE_INTEGRATION)
        for k, v in state["physics"]["left"].items():
            getattr(env.data, k)[:] = v.cpu().numpy()


def _can_be_written(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_can_be_written, value))
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "bif"
    return value is None or isinstance(value, bool | int | float | str)


def _written(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return {type(value).__name__: [_written(v) for v in value]}
    if isinstance(value, np.ndarray | np.generic):
        return {"array" if isinstance(value, np.ndarray) else "scalar": torch.from_numpy(np.array(value))}
    return value


def _restored(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind in ("tuple", "list"):
        items = [_restored(v) for v in inside]
        return tuple(items) if kind == "tuple" else items
    number = inside.cpu().numpy()  # as gymnasium has it, whatever the device
    return number.copy() if kind == "array" else number[()]
