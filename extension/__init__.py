"""The AUTOMATIC1111 web UI's side: a scale slider for LoRA files, and certainty that they take effect.

Loaded by path as `scribble_lora.extension` (see scripts/scribble_lora.py). The pure part (`prompts`, `request`, `infotext`,
`cards`, `adapters`, `catalog`, `importing`, `panel`, `applying`) imports no host and no Gradio; `host`, `script`, `tab`,
`axes` and `door` wire it. Importing anything here loads no torch.
"""
