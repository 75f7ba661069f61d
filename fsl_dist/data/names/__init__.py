"""What samples, classes and groups are called: keys of paths, names in sources, tables that hold them."""
