"""The command line: one file for each group of commands; each parses options and prints what the library returns."""
