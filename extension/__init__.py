"""The AUTOMATIC1111 web UI's side (Forge and reForge too): a scale slider for LoRA files that says what takes effect.

Loaded by path as `scribble_lora.extension` (see scripts/scribble_lora.py). Where to look:
    register     callbacks, API route; called once when the web UI loads its scripts
    script       the hooks of a generation: `process`, `before_process_batch`, …
    accordion    the controls in txt2img and img2img         import_tab   the tab "Scribble LoRA"
    generation   request -> prompts, infotext, messages      arguments    the arguments of the page and the API
    prompts      the grammar of <lora:…> tags                infotext     what is written and pasted
    lora_files   the files that the web UI lists             inspection   form, base and problems of one file
    web_uis      tensor names that each web UI reads         xyz          axes of the X/Y/Z plot
    import_files, cards, panel, failures                     host         every access to the web UI's own modules

`register`, `script`, `accordion`, `import_tab`, `xyz` and `host` need a web UI; the rest imports neither it nor Gradio.
Nothing here imports torch.
"""
