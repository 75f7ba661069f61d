"""What can be set on a run's workers and its optimisation."""

from typing import Annotated, Literal

from pydantic import Field

from fsl_dist.errors import ConfigError
from index.base.settings import settings


@settings("workers")
class WorkersConfig:
    """How many processes train one network, and where."""

    num: Annotated[int, Field(ge=1)] = 1
    """data-parallel workers"""
    launch: Literal["auto", "process", "ray"] = "auto"
    """`process`: in this process (one worker); `ray`: by Ray Train; auto: Ray for two workers and more"""
    gpu: Literal["auto", "never"] = "auto"
    """one GPU a worker where there are GPUs, or none at all"""
    cpus: Annotated[int, Field(ge=1)] = 1
    """CPU cores each worker asks Ray for"""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """times a run restarts from its last checkpoint after a worker died; 0 = never"""
    timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    """seconds after which a worker that waits for the others gives up"""

    def __post_init__(self) -> None:
        if self.launch == "process" and self.num > 1:
            raise ConfigError(
                f"workers.launch=process runs one worker, workers.num={self.num} needs workers.launch=ray"
            )

    @property
    def uses_ray(self) -> bool:
        """Whether the workers go through Ray Train."""
        return self.launch == "ray" or (self.launch == "auto" and self.num > 1)


@settings("training")
class TrainingConfig:
    """One optimisation: how long, how fast, when to stop, what to keep."""

    epochs: Annotated[int, Field(ge=0)] = 100
    """epochs at most; 0 keeps the network as it starts"""
    images: Annotated[int, Field(ge=0)] = 0
    """stop once this many images went forward (compare minings at equal cost); 0 = no such limit"""
    minutes: Annotated[float, Field(ge=0)] = 0.0
    """stop once training has taken this many minutes, resumed sessions together; 0 = no such limit. The learning rate follows
    the time, so a slower machine makes fewer steps of the same schedule: results depend on the machine's speed"""
    batch_size: Annotated[int, Field(ge=1)] = 96
    """images of a step over all workers (methods without episodes), or triplets (chai)"""
    chunk_size: Annotated[int, Field(ge=0)] = 0
    """images of a worker's share that go through the network at a time (gradient caching): memory for that many,
    the gradient of all; a larger share is loaded and forwarded twice. 0 = all at once"""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """AdamW with decoupled weight decay, Adam with coupled L2, or SGD"""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    """learning rate at its highest, of the backbone times `backbone.lr_factor`"""
    head_lr_factor: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    """learning rate of heads and classifier as a multiple of `lr`; auto: 10 where the backbone starts from weights
    (`backbone.pretrained` or `backbone.weights`), else 1, since all layers are new"""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD's momentum"""
    weight_decay: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    """adamw: share of `lr` by which weights shrink each step, without biases and the parameters of norms; adam and sgd:
    L2 coefficient of all parameters. auto: 0.05 for adamw, 1e-5 for adam and sgd, which 0.05 would ruin"""
    schedule: Literal["cosine", "milestones", "constant"] = "cosine"
    """learning rate after the warm-up: down to 0 by half a cosine over the whole run (`epochs`, or `images` or `minutes` where
    that limit comes first), by `lr_gamma` at each of `lr_milestones`, or as it is"""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """share of the run in which the learning rate rises linearly from 0; 0 = no warm-up"""
    lr_milestones: tuple[int, ...] = ()
    """epochs at whose start the learning rate is multiplied by `lr_gamma`, with `schedule=milestones`"""
    lr_gamma: Annotated[float, Field(gt=0)] = 0.1
    """factor at a milestone"""
    clip_norm: Annotated[float, Field(ge=0)] = 5.0
    """a step's gradient over all parameters is scaled down to this L2 norm where it is longer; 0 = no limit"""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """decay of an exponential average of the weights, updated each step; validation, evaluation and everything after them use
    the average. A step in the beginning counts more: the decay is at most (1 + t)/(10 + t) after t steps. 0 = no average"""
    stop_metric: str = ""
    """validation metric to keep the best epoch of; empty = mca/base for pcn, kmeans/ca for scatter, else knn/mcr@5. For
    cross_entropy, mca/base is the classifier's own mean class accuracy. kmeans/ca clusters the validation images, which may
    then be of classes that are not trained on. For chai, triplet/acc is the share of the validation triplets whose images
    alike are nearer to each other than to the third"""
    patience: Annotated[int, Field(ge=0)] = 10
    """validations without a better value before the run stops; 0 = no validation, the last epoch counts"""
    validate_every: Annotated[int, Field(ge=1)] = 1
    """epochs between two validations"""
    validate_start: bool = True
    """score the network before its first step too: it stays the best where no validation of training is better"""
    log_train_knn: bool = False
    """every `validate_every` epochs, also with patience=0, log knn/train_acc@K_p: each training image by the vote of its
    K_p nearest others. Costs an embedding of the training images, shared with a validation or mining at the same
    step, and a search of all against all"""
    checkpoint_steps: Annotated[int, Field(ge=0)] = 0
    """steps between two checkpoints; 0 = at the end of every epoch. A better validation always writes one"""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """newest checkpoints kept in addition to the best one"""
    grace_s: Annotated[float, Field(gt=0)] = 25.0
    """seconds after SIGTERM or Ctrl-C within which the step under way is finished and a checkpoint is written; what takes
    longer is ended, and the last checkpoint counts. Kubernetes gives 30 s before it kills"""
    max_bad_steps: Annotated[int, Field(ge=1)] = 3
    """steps in a row with outputs, a loss or a gradient that are not finite which end the run; fewer are skipped: the weights
    stay as they were. Weights that are not finite end it at once"""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """forward pass; auto: bf16 on a GPU, float32 on a CPU. Losses and distances are float32 always"""
    compile: bool = False
    """torch.compile the network. Needs a C++ compiler where it is trained; on a CPU it brought nothing (docs/benchmarks/index.md)"""

    def __post_init__(self) -> None:
        if self.lr_milestones and self.schedule != "milestones":
            raise ConfigError(
                f"training.lr_milestones={list(self.lr_milestones)} are used with training.schedule=milestones; this run has "
                f"training.schedule={self.schedule} (training.lr_milestones=[] leaves them out)"
            )

    @property
    def decay(self) -> float:
        """The weight decay, as a number."""
        if self.weight_decay != "auto":
            return self.weight_decay
        return 0.05 if self.optimizer == "adamw" else 1e-5

    def uses_bf16(self, device_type: str) -> bool:
        """Whether networks on a device of this type ("cpu", "cuda") run their forward pass in bf16."""
        return self.precision == "bf16" or (self.precision == "auto" and device_type == "cuda")
