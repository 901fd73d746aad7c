"""The multi-task model of book listings.

`listing`, `signature`, `features` and `bundle` never import torch: serving imports them, so that what the model sees in
production is made by the code that made its training data.
"""
