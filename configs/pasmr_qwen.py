"""PASMR on Qwen 2.5 and Qwen 3: English pivot, seven target languages, on a TPU VM.

    python train.py --config=configs/pasmr_qwen.py:1.5b --workdir=DIR --config.data.root=DATA
    python export.py --config=configs/pasmr_qwen.py:1.5b --workdir=DIR --out=exported/qwen

The argument is a size: 0.5b, 1.5b, 3b, 7b, 14b or 32b of Qwen 2.5; qwen3-0.6b, qwen3-1.7b,
qwen3-4b, qwen3-8b or qwen3-14b of Qwen 3, all base models. A folder, another hub id or a GGUF file
is named by --config.model.pretrained=FOLDER; mixtures of experts are not supported.

Qwen has no reserved tokens but rows to spare in its embedding: the two delimiters are new tokens in
those rows, which begin as the mean of the rows of "<pivot>" and "</pivot>" spelled out. Its base
models pad with their end of sequence; here another control token pads.

For an instruction-tuned model, in its own chat template:

    --config.model.pretrained=Qwen/Qwen2.5-1.5B-Instruct --config.prompt.style=chat

Hardware: up to 3b is meant for a v5e-8 (8 x 16 GiB), 7b and 8b for a v5e-16 with
--config.mesh.tensor=4, bfloat16 compute, float32 parameters. Parameters, gradients and two moments
take 16 bytes a parameter over all chips, the frozen reference, in bfloat16, 2 more: 9 GB for 0.5b,
28 GB for 1.5b, 56 GB for 3b. Nothing was run on a TPU;
Qwen2.5-Coder 0.5B Instruct was run on a CPU with its real weights (docs/results.md).
Data, stages and their settings are those of configs/pasmr_gemma.py.
"""

from configs import pasmr_gemma

SIZES = {
  size: f"Qwen/Qwen2.5-{size.upper()}" for size in ("0.5b", "1.5b", "3b", "7b", "14b", "32b")
}
SIZES |= {
  f"qwen3-{size}": f"Qwen/Qwen3-{size.upper()}-Base" for size in ("0.6b", "1.7b", "4b", "8b", "14b")
}


def get_config(size: str = "1.5b"):
  if size not in SIZES:
    raise ValueError(f"configs/pasmr_qwen.py:{size}: expected one of {', '.join(SIZES)}")
  config = pasmr_gemma.get_config()
  config.model.pretrained = SIZES[size]
  config.tokenizer.stop = ()
  return config
