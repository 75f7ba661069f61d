"""`fsl_dist.fit` on the same packed data, the same backbone and image size, with the seconds of plain fine-tuning."""

from benchmarks.practice.outcome import Job, Outcome


def run_fit(job: Job) -> Outcome:
    raise NotImplementedError
