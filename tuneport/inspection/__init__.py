"""`tuneport preview`: the first rows of a configuration's data as its model will see them."""
