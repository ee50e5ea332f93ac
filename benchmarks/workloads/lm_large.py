"""lm_train with a vocabulary of 50,304: time and peak memory of training steps.

Two thirds of the products are then of the last layer, and its logits are 412 MB in single precision. `glibc` are sides
as their users have them: the C library gives large freed blocks back to the system and faults them in again at each
step. The others keep freed memory, all alike. Like is compared with like. Peak memory is all that a process has.
"""

from __future__ import annotations

import functools

from harness import Registry
from lm_train import PEERS, build, morphogen

REG = Registry(
    "lm_large",
    rounds=5,
    slice=1.0,
    budget=40,
    rtol=2e-3,
    needs={"hf": ("transformers",), "xtransformers": ("x_transformers",)},
    pairs=[
        (f"morphogen/eager/{dtype}{malloc}", f"{peer}/{mode}/{dtype}{malloc}", 1 / 1.3)
        for dtype in ("fp32", "bf16")
        for malloc in ("/glibc", "")
        for peer in ("hf", "loop", "nanogpt")
        for mode in ("eager", "compile")
    ],
    memory=[
        (f"morphogen/eager/{dtype}{malloc}", f"{peer}/eager/{dtype}{malloc}", 1 / 2)
        for dtype in ("fp32", "bf16")
        for malloc in ("/glibc", "")
        for peer in ("hf", "loop", "nanogpt")
    ],
)

for dtype in ("fp32", "bf16"):
    for which in PEERS:
        for mode in ("eager", "compile") if which in ("loop", "nanogpt") else ("eager",):
            side = functools.partial(build, which, dtype, mode, 50304)
            REG.add(f"{which}/{mode}/{dtype}", side, dtype)
            if which in ("loop", "nanogpt"):
                REG.add(f"{which}/{mode}/{dtype}/glibc", side, dtype, kept=False)
    side = functools.partial(morphogen, dtype, "eager", 50304)
    REG.add(f"morphogen/eager/{dtype}", side, dtype, smoke=dtype == "fp32")
    REG.add(f"morphogen/eager/{dtype}/glibc", side, dtype, kept=False)
