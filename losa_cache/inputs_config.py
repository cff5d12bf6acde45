"""The options that say what the frozen backbone runs on: for stage one and for online runs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from losa_cache.cache.precision_names import require_precision
from losa_cache.data.data_config import COLUMNS, DATA_DIR, DATASET, SPLIT, PixelConfig, of_data, require_data
from losa_cache.data.names import is_name, located, require_decoder_name
from losa_cache.data.normalisation import TIMM, require_normalisation
from losa_cache.errors import UserError, require_counts, require_seed
from losa_cache.layers import require_layers
from losa_cache.options import Option
from losa_cache.points import ALL, require_tap, require_tokens

if TYPE_CHECKING:
    from losa_cache.backbone import Backbone
    from losa_cache.data.samples import Samples

PRETRAINED, RANDOM = "pretrained", "random"
"""Weights that are not the path of a file."""
PANEL, VIDEO, STORED = "Backbone and images", "Videos", "What is stored"
BACKBONE = (
    "Name of the backbone: vit_s, vit_b, vit_l, vit_h, vit_g, vit_G, vit_e, vit_digits, any ViT of "
    "timm, or vivit_s ... for video."
)
AUGMENT = (
    "Augmentation, by its name in timm: rand-m9-mstd0.5-inc1, augmix-m3-w3 or 3a, for example; or "
    "crop, for random crop and flip alone."
)
WORKERS = "Threads that decode images, or processes if images are augmented; default: one for each core, at most 16."


def of_images(text: str, **more: Any) -> Option:
    """Describe an option of the backbone or its images."""
    return Option(text, **{"panel": PANEL} | more)


@dataclass(frozen=True)
class ImageConfig(PixelConfig):
    """A frozen backbone and the images that it runs on.

    Attributes:
        backbone: a name (``load_backbone``) or a loaded backbone, for which ``weights``, ``img_size``, ``resize`` and
            the options of video backbones are not used.
        dataset: a name (``load_samples``) or loaded samples, for which ``split`` and ``data_dir`` are not used.
        split, data_dir: the part of the data set, and the folder that holds it.
        columns: of a table, to take: ``image=file,label=species,age:numbers`` (``load_samples``).
        weights, img_size, resize: of the backbone; of a video backbone also
        frames, stride, inflation: as of ``load_backbone``.
        clips: rows for each video, 1 or more, evenly spaced over it.
        ignore_orientation: leave pictures as they are stored, as timm and torchvision do, instead of turning them as
            their EXIF orientation or their video's display matrix says.
        normalise: mean and deviation of the pixels (``losa_cache.data.normalisation``).
    """

    backbone: Annotated["str | Backbone", of_images(BACKBONE)]
    dataset: Annotated["str | Samples", of_data(DATASET, path=True)]
    split: Annotated[str, of_data(SPLIT)] = "train"
    data_dir: Annotated[str | None, of_data(DATA_DIR, path=True)] = None
    columns: Annotated[str | None, of_data(COLUMNS)] = None
    weights: Annotated[
        str,
        of_images(
            "Weights of the backbone: pretrained, random, a safetensors, pth or npz file, or the folder of a ViViT.",
            path=True,
        ),
    ] = PRETRAINED
    img_size: Annotated[
        int | None, of_images("Width and height of the input in pixels; default: the backbone's own.")
    ] = None
    resize: Annotated[
        str,
        of_images(
            "How images are brought to the input size: crop (resize and center crop, as in timm's data "
            "config) or exact (resize without a crop)."
        ),
    ] = "crop"
    clips: Annotated[
        int,
        of_images(
            "Number of evenly spaced clips of each video. An epoch of training uses one of them; evaluation "
            "averages over all.",
            panel=VIDEO,
        ),
    ] = 1
    frames: Annotated[
        int | None,
        of_images("Number of frames in a clip of a video; default: 32, or as in the checkpoint.", panel=VIDEO),
    ] = None
    stride: Annotated[
        int | None,
        of_images("Frame stride within a clip; 0 spreads the frames evenly over the video; default: 2.", panel=VIDEO),
    ] = None
    inflation: Annotated[
        str,
        of_images(
            "How a video backbone gets its 3D patch kernel from that of an image ViT: central (in the middle "
            "frame) or averaged (over all frames).",
            panel=VIDEO,
        ),
    ] = "central"
    ignore_orientation: Annotated[
        bool,
        of_images(
            "Do not rotate images by their EXIF orientation, or videos by their display matrix. timm and "
            "torchvision do not, either."
        ),
    ] = False
    normalise: Annotated[
        str,
        of_images(
            "Mean and deviation that pixels are normalised with: imagenet, inception, clip, none, or timm (the "
            "backbone's own)."
        ),
    ] = TIMM

    def paths(self, dataset: str, whole: Callable[[Path], Path]) -> dict[str, str | None]:
        """Give the options that name files or folders, written such that they hold from any working directory.

        Args:
            dataset: name of the data set, or the path of its folder.
            whole: makes a path absolute.
        """
        found = {"data_dir": self.data_dir}
        if (targets := getattr(self, "targets_from", None)) is not None:
            found["targets_from"] = targets
        if str(self.weights) not in (PRETRAINED, RANDOM):
            found["weights"] = self.weights
        written = {name: None if path is None else str(whole(Path(path))) for name, path in found.items()}
        return written if is_name(dataset) else written | {"dataset": located(dataset, whole)}


@dataclass(frozen=True, kw_only=True)
class InputsConfig(ImageConfig):
    """What decides the numbers of a cache.

    Attributes:
        layers: ``"all"``, K evenly spaced, or block numbers.
        tap: what is stored of each of these: its output (``block``), or what its ``attention``, its ``mlp`` or ``both``
            add to the residual stream. The last block's output is always stored.
        embedding: also store the input of the first block, b_0.
        tokens: ``all``, or ``pooled`` (*not from the paper*): only the class token and the mean of the patches of each
            point, each token layer-normed first, and the features of the frozen tail. Linear probes need no more.
        precision: ``float32``, ``float16``, ``bfloat16``, ``int8``, ``int4``, ``predict:BITS`` or ``predict:ERROR%``;
            of pooled rows one of the first four.
        limit: use only this many samples, drawn at random.
        views: rows for each sample, 1 or more: the first is the plain image, the others are augmented.
        augment: with several views, timm's name of their augmentation (``rand-m9-mstd0.5-inc1``, ``crop``, ...).
        decoder: of image files: ``pillow``, or ``nvjpeg``: JPEG files are decoded and resized on the GPU, where CPU
            cores are few. Pixels differ a little, so this is a part of the identity.
        seed: seed of the order of the samples, of their augmentation, and of random weights.

    Raises:
        UserError: for options that cannot work, as far as that can be told without opening anything.
    """

    layers: Annotated[
        str | int | list[int],
        Option(
            "Layers to store: all, a number K (K evenly spaced layers, the last one among them), or a list of "
            "block numbers such as 3,6,12.",
            panel=STORED,
        ),
    ] = "all"
    tap: Annotated[
        str,
        of_images(
            "What is stored of each layer: block (its output), attention or mlp (what that branch adds), or "
            "both (both branches).",
            panel=STORED,
        ),
    ] = "block"
    embedding: Annotated[
        bool, of_images("Also store the input of the first block (for train --start embedding).", panel=STORED)
    ] = False
    tokens: Annotated[
        str,
        of_images(
            "Tokens to store of each layer: all, or pooled (only the class token and the mean of the patches; "
            "enough for probe and for --side linear and fusion).",
            panel=STORED,
        ),
    ] = ALL
    precision: Annotated[
        str,
        of_images(
            "Precision of the stored values: float32, float16, bfloat16, int8, int4, predict:BITS "
            "(predict:1.5 is 1.5 bits a value) or predict:ERROR% (predict:20% allows a relative error of 20 "
            "%).",
            panel=STORED,
        ),
    ] = "bfloat16"
    limit: Annotated[int | None, of_images("Use only this many samples, drawn at random; default: all.")] = None
    views: Annotated[
        int,
        of_images(
            "Views V to store of each image: the plain image and V - 1 augmented ones (see --augment).", panel=STORED
        ),
    ] = 1
    augment: Annotated[str | None, of_images(AUGMENT, panel=STORED)] = None
    decoder: Annotated[
        str,
        of_images(
            "Decoder of image files: pillow, or nvjpeg (JPEG files are decoded on the GPU, for machines with "
            "few CPU cores; pixels differ a little)."
        ),
    ] = "pillow"
    seed: Annotated[
        int, Option("Seed of the order of the samples, of their augmentation, and of --weights random.")
    ] = 0

    def __post_init__(self) -> None:
        require_data(self.dataset, split=self.split, data_dir=self.data_dir, columns=self.columns)
        self.require_pixels()
        require_normalisation(self.normalise)
        require_layers(self.layers)
        require_tap(self.tap)
        require_tokens(self.tokens)
        require_precision(self.precision, tokens=self.tokens)
        require_decoder_name(self.decoder)
        require_counts(views=self.views, limit=self.limit, clips=self.clips)
        require_seed(self.seed)
        if self.views > 1 and self.augment is None:
            raise UserError(f"views is {self.views}: say with --augment how the views after the plain one are drawn.")
        if self.views > 1 and self.clips > 1:
            raise UserError(
                f"views is {self.views} and clips is {self.clips}: rows are augmented views of images or clips of "
                "videos."
            )
        if self.views == 1 and self.augment is not None:
            raise UserError(f"augment is {self.augment!r}, but the first view is plain: ask for --views of at least 2.")
