"""Settings of a run's workers and of its optimisation."""

from typing import Annotated, Literal

from pydantic import Field

from fsl_dist.errors import ConfigError
from index.base.settings import settings


@settings("workers")
class WorkersConfig:
    """Number and location of the processes that train one network."""

    num: Annotated[int, Field(ge=1)] = 1
    """data-parallel workers"""
    min: Annotated[int, Field(ge=0)] = 0
    """workers with which the run continues if the Ray cluster has no longer room for `num` of them: after a node was
    lost and did not come back within FSL_DIST_CAPACITY_TIMEOUT_S (300 s). 0: no fewer than `num`. Steps, batches and
    learning rate stay the same, since a batch is that of all workers together"""
    launch: Literal["auto", "process", "ray"] = "auto"
    """`process`: in this process (one worker); `ray`: by Ray Train; auto: Ray for two workers and more"""
    gpu: Literal["auto", "never"] = "auto"
    """auto: one GPU per worker if there are GPUs; never: no GPU"""
    cpus: Annotated[int, Field(ge=1)] = 1
    """CPU cores that each worker reserves in Ray"""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """number of restarts from the last checkpoint after a worker died; 0: none"""
    timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    """seconds after which a worker stops waiting for the others"""

    def __post_init__(self) -> None:
        if self.min > self.num:
            raise ConfigError(
                f"workers.min={self.min} is above workers.num={self.num}: a run has at most that many (lower min)"
            )
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
    """Optimisation of a run: length, learning rates, stopping, checkpoints."""

    epochs: Annotated[int, Field(ge=0)] = 100
    """maximum number of epochs; 0 keeps the initial network"""
    images: Annotated[int, Field(ge=0)] = 0
    """stop after this many images were forwarded (to compare minings at equal cost); 0: no limit"""
    minutes: Annotated[float, Field(ge=0)] = 0.0
    """stop after this many minutes of training, including resumed sessions; 0: no limit. The learning rate follows
    the time, so a slower machine makes fewer steps of the same schedule: results depend on the machine's speed"""
    batch_size: Annotated[int, Field(ge=1)] = 96
    """images per step over all workers (methods without episodes), or triplets (chai)"""
    chunk_size: Annotated[int, Field(ge=0)] = 0
    """images that a worker forwards at a time (gradient caching): memory for that many, the gradient of all; a larger
    share is loaded and forwarded twice. 0: all at once"""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """AdamW with decoupled weight decay, Adam with coupled L2, or SGD"""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    """learning rate at its highest, of the backbone times `backbone.lr_factor`"""
    head_lr_factor: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    """learning rate of heads and classifier as a multiple of `lr`; auto: 10 if the backbone starts from weights
    (`backbone.pretrained` or `backbone.weights`), otherwise 1, since all layers are new"""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD's momentum"""
    weight_decay: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    """adamw: share of `lr` by which weights shrink each step, without biases and the parameters of norms; adam and sgd:
    L2 coefficient of all parameters. auto: 0.05 for adamw, 1e-5 for adam and sgd, which 0.05 would ruin"""
    schedule: Literal["cosine", "milestones", "constant"] = "cosine"
    """learning rate after the warm-up: down to 0 by half a cosine over the whole run (`epochs`, or `images` or
    `minutes` where that limit comes first), by `lr_gamma` at each of `lr_milestones`, or constant"""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """share of the run in which the learning rate rises linearly from 0; 0 = no warm-up"""
    lr_milestones: tuple[int, ...] = ()
    """epochs at whose start the learning rate is multiplied by `lr_gamma`, with `schedule=milestones`"""
    lr_gamma: Annotated[float, Field(gt=0)] = 0.1
    """factor at a milestone"""
    clip_norm: Annotated[float, Field(ge=0)] = 5.0
    """maximum L2 norm of a step's gradient over all parameters; a longer one is scaled down. 0: no limit"""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """decay of an exponential average of the weights, updated at each step; validation, evaluation and everything
    after them use the average. Early steps count more: the decay is at most (1 + t)/(10 + t) after t steps. 0: no
    average"""
    stop_metric: str = ""
    """validation metric that selects the best epoch; empty: mca/base for pcn, kmeans/ca for scatter, otherwise
    knn/mcr@5. For cross_entropy, mca/base is the classifier's own mean class accuracy. kmeans/ca clusters the
    validation images, whose classes may then be unseen in training. For chai, triplet/acc is the share of the
    validation triplets whose similar images are closer to each other than to the third"""
    patience: Annotated[int, Field(ge=0)] = 10
    """number of validations without a better value before the run stops; 0: no validation, the last epoch is used"""
    validate_every: Annotated[int, Field(ge=1)] = 1
    """epochs between two validations"""
    validate_start: bool = True
    """also score the network before its first step: it stays the best if no later validation is better"""
    log_train_knn: bool = False
    """every `validate_every` epochs, also with patience=0, log knn/train_acc@K_p: the vote of each training image's
    K_p nearest others. Costs an embedding of the training images, shared with a validation or mining at the same
    step, and a search of all against all"""
    checkpoint_steps: Annotated[int, Field(ge=0)] = 0
    """steps between two checkpoints; 0 = at the end of every epoch. A better validation always writes one"""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """newest checkpoints that are kept in addition to the best one"""
    grace_s: Annotated[float, Field(gt=0)] = 25.0
    """seconds after SIGTERM or Ctrl-C for finishing the current step and writing a checkpoint; longer work is ended,
    and the last checkpoint is kept. Kubernetes waits 30 s before it kills a process"""
    max_bad_steps: Annotated[int, Field(ge=1)] = 3
    """number of consecutive steps with non-finite outputs, loss or gradient that ends the run; fewer are skipped,
    without changing the weights. Non-finite weights end it at once"""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """forward pass; auto: bf16 on a GPU, float32 on a CPU. Losses and distances are float32 always"""
    compile: bool = False
    """use torch.compile for the network. Needs a C++ compiler on the training machine;
    on a CPU it was not faster (docs/benchmarks/index.md)"""

    def __post_init__(self) -> None:
        if self.lr_milestones and self.schedule != "milestones":
            raise ConfigError(
                f"training.lr_milestones={list(self.lr_milestones)} are used with training.schedule=milestones; "
                f"this run has training.schedule={self.schedule} (training.lr_milestones=[] leaves them out)"
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
