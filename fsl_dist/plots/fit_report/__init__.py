"""The report on a fit: the answer, the data, the mistakes, likely label errors,
and the expected gain from more images."""
