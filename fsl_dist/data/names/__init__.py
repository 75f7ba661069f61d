"""Names of samples, classes and groups: keys from paths, names in sources, tables with names."""
