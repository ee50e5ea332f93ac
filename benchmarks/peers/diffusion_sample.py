"""16 images from the U-Net of unet_train, DDIM-50 and DPM-Solver++-20: seconds for the batch, and
what the sampler costs beside the net (`*_overhead`: the same loop round a net that costs nothing)."""
import functools
import sys
import types

import harness
from harness import Metric, Registry, Work
from unets import NETS, SIZE

N = 16
REG = Registry("diffusion_sample", rounds=3, slice=0.1, budget=420, needs={"": ("diffusers",)})


def free(x, t=None, *a, **k):
    return x * 0.1


def build(which, sampler, steps, mode="eager"):
    import torch
    torch.manual_seed(0)
    cfg = dict(images=N, size=SIZE, sampler=sampler, steps=steps, mode=mode)
    if which == "ddp":
        m, fwd, vers, _ = NETS["ddp"]()
        from denoising_diffusion_pytorch import GaussianDiffusion
        gd = GaussianDiffusion(m, image_size=SIZE, timesteps=1000, sampling_timesteps=steps).eval()

        def run(net=None):
            if net is None:
                with torch.no_grad():
                    gd.sample(batch_size=N)
            else:
                f, m.forward = m.forward, net
                try:
                    with torch.no_grad():
                        gd.sample(batch_size=N)
                finally:
                    m.forward = f
        over = lambda: run(lambda x, t, c=None: free(x))
    else:
        m, fwd, vers, _ = NETS["diffusers"]()
        m.eval()
        if "channels_last" in mode:
            m = m.to(memory_format=torch.channels_last)
        net = torch.compile(m) if "compile" in mode else m
        if which == "bare-net":
            x = torch.randn(N, 3, SIZE, SIZE)
            if "channels_last" in mode:
                x = x.to(memory_format=torch.channels_last)
            t = torch.full((N,), 500)

            def run():
                with torch.no_grad():
                    for _ in range(steps):
                        net(x, t, return_dict=False)
            over = None
        elif which == "diffusers-pipeline":
            from diffusers import DDIMPipeline, DDIMScheduler
            p = DDIMPipeline(unet=m, scheduler=DDIMScheduler(num_train_timesteps=1000))
            p.set_progress_bar_config(disable=True)

            def run():
                p(batch_size=N, num_inference_steps=steps, output_type="np")

            def over():
                f, m.forward = m.forward, lambda x, t, **k: types.SimpleNamespace(sample=free(x))
                try:
                    run()
                finally:
                    m.forward = f
        elif which == "diffusers-scheduler":
            from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
            sch = (DDIMScheduler if sampler == "ddim" else DPMSolverMultistepScheduler)(num_train_timesteps=1000)

            def run(f=None):
                f = f or (lambda x, t: net(x, t, return_dict=False)[0])
                with torch.no_grad():
                    sch.set_timesteps(steps)
                    x = torch.randn(N, 3, SIZE, SIZE)
                    for t in sch.timesteps:
                        x = sch.step(f(sch.scale_model_input(x, t), t), t, x, return_dict=False)[0]
            over = lambda: run(free)
        else:                                               # k-diffusion's dpmpp_2m, imported without its extras
            harness.torchvision_dir()
            for n in ("augmentation", "evaluation", "config", "gns", "models"):
                sys.modules["k_diffusion." + n] = types.ModuleType("k_diffusion." + n)
            import k_diffusion as K
            vers = ("torch", "diffusers", "k-diffusion")
            acp = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)

            def run(f=None):
                f = f or (lambda x, t: net(x, t, return_dict=False)[0])

                class Eps(K.external.DiscreteEpsDDPMDenoiser):
                    def get_eps(self, x, t, **kw):
                        return f(x, t)
                with torch.no_grad():
                    d = Eps(None, acp, quantize=True)
                    sig = d.get_sigmas(steps)
                    K.sampling.sample_dpmpp_2m(d, torch.randn(N, 3, SIZE, SIZE) * sig[0], sig, disable=True)
            over = lambda: run(free)
    ms = {"sample": Metric(run, "s", kind="time", once=True, warmup=0)}
    if over:
        ms["overhead"] = Metric(over, "s", kind="time", warmup=2)
    if which in ("bare-net", "diffusers-scheduler", "diffusers-pipeline"):
        with torch.no_grad():
            x = torch.randn(N, 3, SIZE, SIZE)
            ms["sample"].flops = steps * harness.count_flops(lambda: m(x, 500))
            net(x, torch.tensor(500))
            net(x, torch.full((N,), 500))
    cfg["params"] = harness.nparams(m)
    return Work(ms, cfg, ("torch",) + tuple(v for v in vers if v != "torch"))


for w in ("bare-net", "diffusers-pipeline", "diffusers-scheduler", "ddp"):
    REG.add(f"{w}/ddim50", functools.partial(build, w, "ddim", 50), "ddim50")
for w in ("bare-net", "diffusers-scheduler", "k-diffusion"):
    REG.add(f"{w}/dpmpp20", functools.partial(build, w, "dpmpp", 20), "dpmpp20")
REG.add("diffusers-scheduler/dpmpp20/channels_last",
        functools.partial(build, "diffusers-scheduler", "dpmpp", 20, "channels_last"), "dpmpp20")
REG.add("diffusers-scheduler/dpmpp20/compile+channels_last",
        functools.partial(build, "diffusers-scheduler", "dpmpp", 20, "compile+channels_last"), "dpmpp20")
