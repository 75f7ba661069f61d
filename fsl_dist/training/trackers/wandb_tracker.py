"""A run in Weights & Biases, whose client reads WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY and its other variables."""

import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from fsl_dist.training.trackers.tracker import PROJECT, Ending, Fact, TrackedRun

FINISH_S = 15
"""seconds for W&B's upload after a run's end; WANDB_FINISH_TIMEOUT takes precedence"""


def prepare_wandb() -> None:
    """Set the defaults that must be set before W&B is imported; the environment takes precedence."""
    # By default, W&B reports its own errors to its developers.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    logging.getLogger("wandb").setLevel(logging.WARNING)


def find_obstacle() -> str:
    """Why W&B cannot store the run, with a remedy; empty if it can,
    or if nothing is sent (WANDB_MODE=offline, disabled).

    Checks the sources that W&B uses: its variables, netrc, its settings. Contacts no server and prompts nobody.
    """
    prepare_wandb()
    import wandb
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib import wbauth

    try:
        # setup() reads the variables once per process; they may have changed since.
        wandb.Settings().update_from_env_vars(os.environ)
        settings = wandb.setup().settings
    except (wandb.Error, ValueError) as error:
        return f"its settings are wrong: {error} (WANDB_PROJECT and W&B's other variables are read)"
    if (os.environ.get("WANDB_MODE") or settings.mode) in ("offline", "disabled", "dryrun"):
        return ""
    try:
        found = wbauth.authenticate_session(
            host=settings.base_url, source="run.trackers", prompt=False, update_session=False
        )
        reason = "" if found else "there is no API key"
    except AuthenticationError as error:
        reason = str(error)
    way_out = "set WANDB_API_KEY or run `wandb login`; WANDB_MODE=offline keeps the run in its folder and sends nothing"
    return f"{reason} ({way_out})" if reason else ""


def project_place() -> str:
    """Server, entity and project that W&B's variables and settings name."""
    prepare_wandb()
    import wandb

    settings = wandb.setup().settings
    entity = os.environ.get("WANDB_ENTITY") or settings.entity or ""
    return f"{settings.base_url} {entity}/{os.environ.get('WANDB_PROJECT') or PROJECT}"


class WandbTracker:
    """A W&B run: created, or continued by its identifier.
    Offline, a continuation is a separate folder with that identifier."""

    def __init__(self, tracked: TrackedRun, known: str) -> None:
        """known: identifier of the run to continue, if any."""
        prepare_wandb()
        import wandb

        self.id = known or secrets.token_hex(8)
        options: dict[str, Any] = {
            "silent": True,
            "console": "off",
            "finish_timeout": FINISH_S,
            "finish_timeout_raises": True,
        }
        settings = {
            name: value for name, value in options.items() if f"WANDB_{name.upper()}" not in os.environ
        }
        tracked.folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=self.id,
            name=tracked.name,
            group=tracked.group or None,
            job_type=None if tracked.sweep is None else "trial" if tracked.is_trial else "sweep",
            dir=os.environ.get("WANDB_DIR") or str(tracked.folder),
            resume="allow",
            reinit="create_new",  # trials in one process have a run each
            settings=wandb.Settings(**settings),
        )
        self._run.config.update({**tracked.config, "run_dir": str(tracked.folder)}, allow_val_change=True)
        self.address = f"folder {self._run.dir}" if self._run.offline else str(self._run.url)

    def log(self, lines: Sequence[Mapping[str, float]]) -> None:
        """Record lines of a metrics file; those of the same step become one row."""
        for line in lines:
            values = {name: value for name, value in line.items() if name != "step"}
            self._run.log(values, step=int(line["step"]))

    def end(self, facts: Mapping[str, Fact], ending: Ending) -> None:
        """Facts become the summary's `report/NAME`."""
        self._run.summary.update({f"report/{name}": value for name, value in facts.items()})
        self._run.finish(exit_code=0 if ending == "finished" else 1)
