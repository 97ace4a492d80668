"""PASMR on Llama 3 and SmolLM2: English pivot, seven target languages, on a TPU VM.

    python train.py --config=configs/pasmr_llama.py:1b --workdir=DIR --config.data.root=DATA
    python export.py --config=configs/pasmr_llama.py:1b --workdir=DIR --out=exported/llama

The argument is a size: 1b or 3b of Llama 3.2, 8b or 70b of Llama 3.1, 135m, 360m or 1.7b of
SmolLM2. Llama's weights are gated: accept the licence on the hub and set HF_TOKEN. A folder, any
other hub id or a GGUF file is named by --config.model.pretrained=FOLDER: its size is read from it.

Delimiters are two of Llama's reserved tokens. SmolLM2 has none to spare: it gets two new ones, with
rows of the embedding that begin as the mean of those of "<pivot>" and "</pivot>" spelled out.

For an instruction-tuned model, in its own chat template:

    --config.model.pretrained=meta-llama/Llama-3.2-1B-Instruct --config.prompt.style=chat

Hardware: 1b and 3b are meant for a v5e-8 (8 x 16 GiB), 8b for a v5e-16 with
--config.mesh.tensor=4, bfloat16 compute, float32 parameters. Parameters, gradients and two moments
take 16 bytes a parameter over all chips, the frozen reference, in bfloat16, 2 more: 22 GB for 1b,
58 GB for 3b, 145 GB for 8b. None of these has been run on a
TPU, and of this family only SmolLM2-135M-Instruct was run with real weights (docs/models.md).
Data, stages and their settings are those of configs/pasmr_gemma.py.
"""

from configs import pasmr_gemma

SIZES = {
  "1b": "meta-llama/Llama-3.2-1B",
  "3b": "meta-llama/Llama-3.2-3B",
  "8b": "meta-llama/Llama-3.1-8B",
  "70b": "meta-llama/Llama-3.1-70B",
  "135m": "HuggingFaceTB/SmolLM2-135M",
  "360m": "HuggingFaceTB/SmolLM2-360M",
  "1.7b": "HuggingFaceTB/SmolLM2-1.7B",
}


def get_config(size: str = "1b"):
  if size not in SIZES:
    raise ValueError(f"configs/pasmr_llama.py:{size}: expected one of {', '.join(SIZES)}")
  config = pasmr_gemma.get_config()
  config.model.pretrained = SIZES[size]
  config.tokenizer.stop = ()
  return config
