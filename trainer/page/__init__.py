"""The page: pictures, recipe, training and result in a browser. A front end of the command line, which does all the work."""
