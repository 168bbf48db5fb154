"""ComfyUI's entry module: `git clone` into `custom_nodes/` installs the nodes. Everything is in comfy_nodes/."""

if __package__:  # a host imports the folder as a package; a tool that runs this file alone gets nothing
    from .comfy_nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, WEB_DIRECTORY

    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
