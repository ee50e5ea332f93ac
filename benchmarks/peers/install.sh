#!/usr/bin/env bash
# Make the peers' own environment: install.sh FOLDER [PYTHON]. Nothing of it enters the product's environment.
# Its torch is the one of constraints.txt, so that both sides of a ratio stand on the same.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:?usage: install.sh FOLDER [PYTHON]}
python=${2:-python3}
torch=$(grep '^torch==' constraints.txt)
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
pip() { "$folder/bin/python" -m pip --disable-pip-version-check "$@"; }
echo "Installing the peers into $folder (about 3 GB) ..."
pip install -qq --upgrade -c constraints.txt pip
pip install -qq "$torch" accelerate transformers diffusers trl peft stable-baselines3 "gymnasium[mujoco]" zuko \
  torchdiffeq gensim x-transformers torchmetrics scikit-learn onnxruntime onnx onnxscript psutil matplotlib \
  tensorboard POT tyro safetensors pytest jaxtyping
# these pin, or drag in, what would replace torch
pip install -qq --no-deps normflows nflows flow-matching torchcfm pythae
# what needs torchvision lives apart: its only build is made for another torch, its compiled part does not load, and
# transformers and diffusers would trip over it
pip install -qq --no-deps --target "$folder/tv" "torchvision==0.28.*" denoising-diffusion-pytorch ema-pytorch \
  pytorch-fid k-diffusion dctorch jsonmerge clean-fid clip-anytorch kornia kornia_rs torchsde trampoline einops \
  accelerate psutil
got=$("$folder/bin/python" -c 'import torch; print("torch==" + torch.__version__.partition("+")[0])')
[ "$got" = "$torch" ] || { echo "The peers' packages replaced $torch by $got: remove $folder and install again." >&2; exit 1; }
echo "Done. nanoGPT, CleanRL and EDM are not packages: clone them and say where with --checkout nanogpt=FOLDER."
