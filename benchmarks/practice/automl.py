"""FLAML's search over classifiers on frozen features."""

import logging
import warnings

from benchmarks.practice.outcome import Job, Outcome, Result
from benchmarks.practice.scores import Labels, Vectors, score
from benchmarks.practice.spent import stopwatch


def run_automl(job: Job) -> Outcome:
    """FLAML with its default estimators, accuracy on our validation part, within the job's seconds; it trains on
    train alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its libraries warn of each other's versions
        from flaml.automl import AutoML

        logging.getLogger("flaml").setLevel(logging.ERROR)
        prepared = job.prepared
        train, val, test = prepared.train, prepared.val, prepared.test
        features = prepared.features
        search = AutoML()
        read_clock = stopwatch()
        search.fit(
            features[train.rows],
            train.labels,
            X_val=features[val.rows],
            y_val=val.labels,
            task="classification",
            metric="accuracy",
            eval_method="holdout",
            retrain_full=False,
            time_budget=max(1.0, job.budget_s - prepared.feature_time.seconds),
            seed=job.seed,
            verbose=0,
        )
        spent = read_clock()

        def predict(vectors: Vectors) -> Labels:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return search.predict(vectors).astype("int64")

        own = Result(
            str(search.best_estimator),
            score(predict(features[val.rows]), val.labels),
            lambda: score(predict(features[test.rows]), test.labels),
        )
    return Outcome(spent, 0, {"": own}, prepared.feature_time)
