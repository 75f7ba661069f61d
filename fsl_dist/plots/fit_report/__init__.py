"""The report on a fit: the answer, the data, the mistakes, likely label errors, and what more images would bring."""
