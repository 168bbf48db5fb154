"""The arithmetic on weights behind `convert.reduce`, `.merge`, `.extract` and `.bake`. It needs numpy."""

from importlib.util import find_spec

if find_spec("numpy") is None:
    raise SystemExit("this command of convert needs numpy: python -m pip install numpy")
