"""The command line: one file for each group of commands, which parses options and prints what the library returns."""
