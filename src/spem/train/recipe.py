"""Recipes: the settings of a training run, as a checked dataclass and as YAML."""

from dataclasses import asdict, dataclass, field, fields
from typing import Annotated

from spem._extras import needs_extra
from spem._schema import (
    Accuracy,
    Area,
    Bits,
    Count,
    Few,
    Flag,
    Fraction,
    Interpolation,
    Milestones,
    NonNegative,
    Numbers,
    Pixels,
    Places,
    Positive,
    Positives,
    Ratio,
    Seed,
    Share,
    Text,
    Texts,
    Workers,
    check_value,
    whole,
)
from spem.train.keys import (
    Alpha,
    BatchSize,
    ClassWeights,
    Device,
    Factors,
    GateOptions,
    Init,
    Loader,
    LoggerName,
    LossName,
    OnBadImage,
    OnNonfinite,
    OptimizerName,
    Precision,
    Schedule,
)
from spem.train.rules import check_together

with needs_extra("train"):
    import yaml

# What the axes of a comparison decide, or what makes several runs of one.
AXES = ("model", "gate", "gate_options", "data", "seed", "replicas", "folds", "fold")
# The data sets that are not folders; their recipes name the mean and std of their images.
NAMED_DATA = ("digits", "cifar10", "cifar100")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training run; the command's flags and the YAML keys are its fields.

    Args:
        model: name of the network: resnet20, preresnet110, vgg16, densenet100, attention56 …; or
            timm:NAME, torchvision:NAME or hf:ID for a network of another library.
        block: of (pre-activation) ResNets: basic or bottleneck; none: what the depth suggests.
        gate: name of the channel attention; none: no attention.
        init: start of a gate whose options name none: paper, as its authors start it, or identity,
            with multipliers of exactly 1; none: identity in a network of another library with
            trained weights, else paper. With `weights` that have the gate, these count.
        gate_options: keyword arguments of the gate, for example `{alpha: 0.1}`.
        placement: residual, conv, norm, last-stage, conv3x3 or between-stages; none: what the
            gate's authors do.
        at: where gates go in a network of another library: residual, stage, depthwise, a pattern of
            names of modules like 'layer4.*.bn2', or a list of these; none: residual.
        mask: 0 or 1 for every place of a gate, in order; none: gates at all of them.
        dropout: probability with which a network of another library drops the inputs of its
            classifier in training; none: what the library does.
        drop_path: probability with which such a network drops its last residual branch, and those
            before it less often (stochastic depth); none: what the library does.
        import_: Python files that register gates or networks (`spem.register`,
            `spem.register_model`); they are run. The key is `import`.
        pretrained: start from the weights that another library has for its network; they are
            fetched once.
        weights: a `.safetensors` or `.pth` file, the folder of a run or a bundled network to start
            from. Of these and of pretrained weights a classifier for another number of classes
            starts anew.
        data: digits, cifar10, cifar100, or the path of an image folder.
        data_dir: folder below which the data sets lie.
        download: fetch the data set when it is absent.
        image_size: side to which images are brought, in pixels; none: for a folder that of the
            backbone, else 32; for other data their own size.
        interpolation: how images of a folder are resized: nearest, bilinear, bicubic or lanczos;
            none: as for the backbone, else bilinear.
        crop_ratio: of a folder: share of the resized image's shorter side that is cut out of its
            centre; none: that of the backbone, else images just cover `image_size`.
        validation: fraction of the training images held out; none: no validation split.
        folds: number of equal parts, stratified by class, into which the images are divided; none:
            the data's own test split. Test images that the data has are then left alone.
        fold: the part that is the test split, from 1.
        on_bad_image: raise an error at an image of a folder that cannot be read, or skip such
            training images, up to 1 %.
        loader: of a folder: memory, for images that are decoded once; stream, for those decoded
            when they are needed, with the same results; none: stream from 2 GB of pixels on.
        workers: processes for each device that decode streamed images ahead of their use; none: a
            core's each, at most 8, on a GPU, and none on the CPU, which computes meanwhile.
        mean: subtracted from pixels in [0, 1], one number per channel; none: that of the backbone,
            a network of another library or one whose file says it, else that of the training images
            of a folder, else 0.5.
        std: divides them afterwards, one number per channel; none: as for the mean.
        resized_crop: smallest and largest share of a picture of which a training image is made, at
            a random place, of a random shape, published: [0.08, 1]; for streamed folders, whose
            images are else resized as those that are evaluated; none: no such crop.
        crop: zero padding of the random crop, in pixels; 0: no crop.
        flip: mirror half of the training images.
        color_jitter: change brightness, contrast and saturation of each training image, in this
            order, by factors drawn evenly from 1 − c to 1 + c; often 0.4; 0: none.
        trivial_augment: change each training image by one of fourteen operations (rotation, shear,
            colour, sharpness …) of one of 31 strengths, in TrivialAugment's wide space.
        random_erasing: probability of a rectangle of noise in a training image; published: 0.5.
        mixup: mix pairs of training images and of their labels; the α of Beta(α, α), of which the
            shares are drawn, often 0.2; 0: no mixup.
        cutmix: put a rectangle of one training image into another, and mix the labels by area; the
            α of Beta(α, α), often 1; 0: no CutMix. With `mixup`, each image gets either.
        epochs: passes over the training images.
        patience: epochs without a better validation accuracy after which the run ends, with the
            weights of its last epoch; those of the warm-up do not count; none: it has all epochs.
        batch_size: images of one optimisation step, over all devices and micro-batches; auto: the
            largest power of two that fits into memory, at most 1,024 and an eighth of the training
            images; a GPU tries it, a CPU takes half of its free memory.
        optimizer: sgd; adamw; or muon, for the weights of convolutions and linear layers outside of
            gates and classifier, with AdamW at the same rate for all other parameters.
        lr: highest learning rate.
        lr_factors: factors of the learning rate of the parts of a network, for example `{backbone:
            0.1}`; parts are backbone, gates and classifier, and those not named have 1.
        layer_decay: factor of the learning rate from each layer (a block, or a convolution outside
            of blocks) to the one before it; none: the same rate in all.
        freeze: what is not trained: backbone, for all but gates and classifier, or a pattern of
            names of modules and parameters, for example `layer[12]*`. Gates are trained all the
            same, and frozen BatchNorms keep their running statistics, by which they normalise.
        freeze_epochs: the first epochs, in which `freeze` holds; none: it holds for the whole run.
        momentum: momentum of sgd and muon; the first beta of adamw.
        nesterov: Nesterov's form of the momentum, for sgd and muon.
        weight_decay: L2 penalty (adamw and muon: decoupled decay) on every parameter but those that
            a gate's authors exempt (`Attention.no_weight_decay`).
        schedule: step (times `gamma` at `milestones`), cosine (to zero), onecycle (climbs from
            lr / 25 in `warmup_epochs`, then a cosine to next to zero) or constant.
        milestones: numbers of epochs after which the rate is multiplied by `gamma`.
        gamma: factor of the step schedule.
        warmup_epochs: epochs in which the rate climbs to `lr`, linearly (onecycle: along a cosine);
            may be fractional.
        loss: ce, cross-entropy; or bce, the mean over the classes of each one's binary
            cross-entropy. Validation and test report cross-entropy with both.
        label_smoothing: share of the target spread evenly over the classes, in [0, 1).
        class_weights: balanced, for n / (K·n_c), so that each of K classes counts as much as the
            others however many of the n training images it has; none: each image counts alike.
        clip_gradient: largest norm of the whole gradient; none: no clipping.
        ema: decay of the moving average of the weights, in (0, 1); with it the averaged weights are
            evaluated and stored.
        on_nonfinite: what a step does whose loss is not finite: stop the run and say
            where it began, or skip the step; ten skipped in a row stop the run. On a GPU skip waits
            for each step, and stop names no module.
        checkpoint_minutes: age of the last checkpoint at which a single process saves its state
            within an epoch; none: at the end of each epoch only.
        accumulate: micro-batches whose gradients make one step; at most `batch_size`.
        precision: 32, bf16-mixed, 16-mixed, or auto: bf16-mixed on GPUs and CPUs that compute in
            bfloat16, else 32.
        channels_last: keep feature maps in the NHWC memory format.
        compile: pass the network through torch.compile.
        cuda_graph: replay the training step as one CUDA graph, which saves the launches of its many
            small operations; for one CUDA device and a network without dropout.
        sync_batchnorm: share batch statistics between devices.
        device: auto, cpu, cuda or mps.
        devices: number of devices, one process each.
        threads: CPU threads, over all processes; none: `OMP_NUM_THREADS`, else all cores that the
            process may use.
        seed: fixes the initial weights, the splits that are drawn, the order and the augmentation.
        replicas: number of runs, of the seeds `seed`, `seed` + 1 …, that are trained in turn on one
            device; each gives what it would give alone.
        progress: print each finished epoch, in a terminal below them a progress bar.
        logger: csv; or tensorboard or wandb, which get every epoch beside `metrics.csv` (extra
            `log`). Without a key or a network wandb works offline.

    Raises:
        ValueError: a value is not allowed.
    """

    model: Text = "resnet20"
    block: Text | None = None
    gate: Text | None = None
    init: Init | None = None
    gate_options: GateOptions = field(default_factory=dict)
    placement: Text | None = None
    at: Places | None = None
    mask: Bits | None = None
    dropout: Share | None = None
    drop_path: Share | None = None
    import_: Texts = field(default_factory=list)
    pretrained: Flag = False
    weights: Text | None = None
    data: Text = "digits"
    data_dir: Text = "data"
    download: Flag = False
    image_size: Pixels | None = None
    interpolation: Interpolation | None = None
    crop_ratio: Ratio | None = None
    validation: Fraction | None = 0.1
    folds: Count | None = None
    fold: Count | None = None
    on_bad_image: OnBadImage = "raise"
    loader: Loader | None = None
    workers: Workers | None = None
    mean: Numbers | None = None
    std: Positives | None = None
    resized_crop: Area | None = None
    crop: Annotated[int, whole(0, 1000)] = 0
    flip: Flag = False
    color_jitter: Accuracy = 0.0
    trivial_augment: Flag = False
    random_erasing: Accuracy = 0.0
    mixup: Alpha = 0.0
    cutmix: Alpha = 0.0
    epochs: Count = 15
    patience: Count | None = None
    batch_size: BatchSize = 128
    optimizer: OptimizerName = "sgd"
    lr: Positive = 0.1
    lr_factors: Factors = field(default_factory=dict)
    layer_decay: Fraction | None = None
    freeze: Text | None = None
    freeze_epochs: Count | None = None
    momentum: Share = 0.9
    nesterov: Flag = True
    weight_decay: NonNegative = 5e-4
    schedule: Schedule = "cosine"
    milestones: Milestones = field(default_factory=list)
    gamma: Positive = 0.1
    warmup_epochs: NonNegative = 1.0
    loss: LossName = "ce"
    label_smoothing: Share = 0.0
    class_weights: ClassWeights | None = None
    clip_gradient: Positive | None = None
    ema: Fraction | None = None
    on_nonfinite: OnNonfinite = "stop"
    checkpoint_minutes: Positive | None = None
    accumulate: Count = 1
    precision: Precision = "32"
    channels_last: Flag = True
    compile: Flag = False
    cuda_graph: Flag = False
    sync_batchnorm: Flag = False
    device: Device = "auto"
    devices: Few = 1
    threads: Few | None = None
    seed: Seed = 0
    replicas: Few = 1
    progress: Flag = True
    logger: LoggerName = "csv"

    def __post_init__(self) -> None:
        for key in fields(self):
            check_value(key.name.rstrip("_"), getattr(self, key.name), key.type)
        check_together(self)

    def to_yaml(self) -> str:
        """Return the complete recipe as YAML that `load_recipe` reads back to an equal one."""
        settings = {key.rstrip("_"): value for key, value in asdict(self).items()}
        return yaml.safe_dump(settings, sort_keys=False, default_flow_style=None)
