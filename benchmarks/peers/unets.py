"""The U-Nets (about 10 million parameters, 32x32x3) that several workloads share."""
import os
import sys

import harness

SIZE = 32


def diffusers_unet():
    from diffusers import UNet2DModel
    m = UNet2DModel(sample_size=SIZE, in_channels=3, out_channels=3, layers_per_block=2,
                    block_out_channels=(64, 128, 128, 160),
                    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
                    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
                    dropout=0.0)
    return m, (lambda m, x, t: m(x, t, return_dict=False)[0]), ("diffusers",), {}


def ddp_unet():
    harness.torchvision_dir()
    from denoising_diffusion_pytorch import Unet
    m = Unet(dim=56, dim_mults=(1, 2, 2, 4), full_attn=(False, True, False, False), flash_attn=True)
    return m, (lambda m, x, t: m(x, t)), ("denoising-diffusion-pytorch",), {}


def edm_unet():
    path = harness.checkout("edm")
    sys.path.insert(0, path)
    from training.networks import SongUNet
    m = SongUNet(img_resolution=SIZE, in_channels=3, out_channels=3, model_channels=64,
                 channel_mult=[1, 2, 2, 2], num_blocks=2, attn_resolutions=[16], dropout=0.0)
    return m, (lambda m, x, t: m(x, t.float(), None)), (), {"commit": harness.git_version(path), "net": "SongUNet (DDPM++)"}


NETS = {"diffusers": diffusers_unet, "ddp": ddp_unet, "edm": edm_unet}
