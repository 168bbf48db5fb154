"""The arithmetic on weights behind `convert.reduce`, `.merge`, `.extract` and `.bake`. It needs numpy."""
