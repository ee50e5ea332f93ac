"""Seconds of an import, or of `morphogen --help`, in a fresh interpreter with files cached; and what comes with it.

`modules` counts what the statement loads, `packages` what installing it brings beside torch's own.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
import subprocess
import sys

from harness import Metric, Registry, Work

IMPORTS = {  # side: (statement, distribution)
    "morphogen": ("import morphogen", "morphogen"),
    "morphogen --help": (
        "import sys; sys.argv = ['morphogen', '--help']\nfrom morphogen.cli import main\n"
        "try: main()\nexcept SystemExit: pass",
        "morphogen",
    ),
    "python alone": ("pass", ""),
    "torch": ("import torch", "torch"),
    "numpy": ("import numpy", "numpy"),
    "diffusers": ("import diffusers", "diffusers"),
    "diffusers, used": ("from diffusers import UNet2DModel, DDPMScheduler, DDIMPipeline", "diffusers"),
    "transformers, used": ("from transformers import GPT2LMHeadModel, GPT2Config", "transformers"),
    "pythae, used": ("from pythae.models import VAE, VAEConfig; from pythae.trainers import BaseTrainer", "pythae"),
    "stable_baselines3": ("import stable_baselines3", "stable-baselines3"),
    "trl, used": ("from trl import DPOTrainer, DPOConfig", "trl"),
    "peft": ("import peft", "peft"),
    "zuko": ("import zuko", "zuko"),
    "nflows, used": ("from nflows.flows.base import Flow; import nflows.transforms", "nflows"),
    "normflows": ("import normflows", "normflows"),
    "torchcfm": ("import torchcfm", "torchcfm"),
    "x_transformers": ("import x_transformers", "x-transformers"),
    "gensim, used": ("from gensim.models import Word2Vec", "gensim"),
}
OURS = ("morphogen", "morphogen --help", "python alone", "torch", "numpy")
NEEDS = {name: (re.match(r"\w+", name)[0],) for name in IMPORTS if name not in OURS}  # type: ignore[index]
REG = Registry("import_time", rounds=5, slice=0.01, budget=200, needs=NEEDS, pairs=[("morphogen", "torch", None)])


def closure(distribution: str, seen: set[str] | None = None) -> set[str]:
    """Names of the installed distributions that one needs, its own among them."""
    seen = set() if seen is None else seen
    if not distribution:
        return seen
    key = re.sub(r"[-_.]+", "-", distribution).lower()
    if key in seen:
        return seen
    try:
        found = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return seen
    seen.add(key)
    for wanted in found.requires or []:
        if "extra ==" not in wanted:
            closure(re.match(r"[\w.-]+", wanted)[0], seen)  # type: ignore[index]
    return seen


def build(name: str) -> Work:
    code, distribution = IMPORTS[name]
    command = [sys.executable, "-W", "ignore", "-c"]
    count = "print('\\n', len(set(sys.modules) - before), 'torch' in sys.modules)"
    probe = f"import sys; before = set(sys.modules)\n{code}\n{count}"
    modules, torch = subprocess.run([*command, probe], capture_output=True, text=True, check=True).stdout.split()[-2:]

    def run() -> None:
        subprocess.run([*command, code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    config = {
        "statement": code,
        "modules": int(modules),
        "loads torch": torch == "True",
        "packages": len(closure(distribution) - closure("torch") - {distribution}),
    }
    return Work({"import": Metric(run, "s", kind="time", once=True)}, config, (distribution,) if distribution else ())


for side in IMPORTS:
    REG.add(side, functools.partial(build, side), smoke=side in OURS)
