"""The page: pictures, recipe, training and result in a browser. A door on the command line, which does all the work."""
