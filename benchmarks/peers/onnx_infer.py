"""The diffusers U-Net exported to ONNX: onnxruntime against torch eager and compiled, latency of one forward."""
import functools
import os
import tempfile

import harness
from harness import Metric, Registry, Work
from unets import SIZE, diffusers_unet

REG = Registry("onnx", rounds=5, slice=0.7, budget=240, needs={"": ("diffusers",), "onnxruntime": ("diffusers", "onnxruntime")})


def build(how, batch):
    import torch
    torch.manual_seed(0)
    m, fwd, v, _ = diffusers_unet()
    m.eval()
    x, t = torch.randn(batch, 3, SIZE, SIZE), torch.full((batch,), 500)
    vers = ("torch",) + v
    extra = {}
    if how == "onnxruntime":
        import onnxruntime as ort

        class W(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.m = m

            def forward(self, x, t):
                return self.m(x, t, return_dict=False)[0]
        f = os.path.join(tempfile.gettempdir(), f"peers_unet_b{batch}.onnx")
        with torch.no_grad():
            torch.onnx.export(W().eval(), (x, t), f, dynamo=True)
            ref = W()(x, t)
        so = ort.SessionOptions()
        so.intra_op_num_threads = harness.THREADS
        s = ort.InferenceSession(f, so, providers=["CPUExecutionProvider"])
        feed = {i.name: a.numpy() for i, a in zip(s.get_inputs(), (x, t))}
        extra["max_abs_diff"] = float((torch.from_numpy(s.run(None, feed)[0]) - ref).abs().max())
        vers += ("onnxruntime", "onnx")

        def run():
            s.run(None, feed)
    else:
        if "channels_last" in how:
            m = m.to(memory_format=torch.channels_last)
            x = x.to(memory_format=torch.channels_last)
        mm = torch.compile(m) if "compile" in how else m
        def run():
            with torch.inference_mode() if "compile" not in how else torch.no_grad():
                fwd(mm, x, t)
    flops = harness.count_flops(lambda: fwd(m, x, t)) if how != "onnxruntime" else 0
    return Work({"latency": Metric(run, "s", 1, kind="time", warmup=2, flops=flops)},
                dict(batch=batch, how=how, params=harness.nparams(m), **extra), vers)


for b in (1, 8):
    for how in ("onnxruntime", "torch-eager", "torch-channels_last", "torch-compile", "torch-compile+channels_last"):
        REG.add(f"{how}/b{b}", functools.partial(build, how, b), f"b{b}")
