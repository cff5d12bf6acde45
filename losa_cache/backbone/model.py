"""The frozen backbone: images or videos in, block outputs (or other points of its trunk) out."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from losa_cache.backbone.hugging_face import open_folder
from losa_cache.backbone.mapped import MappedFile
from losa_cache.backbone.names import CHECKPOINT, DIGITS_WEIGHTS, VIDEO, build, full_name, hollow
from losa_cache.backbone.rounded import Rounded, in_place, round_weights, size_of_rounded
from losa_cache.backbone.streamed import Sink, StreamedTrunk
from losa_cache.backbone.tail import read_tail
from losa_cache.backbone.taps import GATES, watch
from losa_cache.backbone.vivit import CENTRAL, FRAMES, STRIDE, TubeletEmbed, inflate
from losa_cache.backbone.weights import load_file, map_file, require_sound, weights_hash
from losa_cache.data.normalisation import TIMM
from losa_cache.data.transforms import InputSpec
from losa_cache.errors import UserError, require_counts
from losa_cache.inputs_config import PRETRAINED, RANDOM
from losa_cache.machine.device import has_bfloat16
from losa_cache.machine.memory import available_memory
from losa_cache.points import EMBEDDING, tapped_points
from losa_cache.sidenet.tail import FrozenTail

ROUNDING = 1e-5  # relative, of a sum in float32
ROUNDED_SHARE = 4  # of a GPU's free memory, rounded copies of the weights may take this part
FEW_FRAMES = {"vit_digits": 4}
"""Frames of a clip, for trunks that are not given the paper's 32 (*not from the paper*)."""


class Backbone:
    """A frozen ViT that yields its raw block outputs b_1 ... b_L (before the final norm), and what they are made of.

    Attributes:
        name: resolved name (timm's, or one of ours).
        weights: ``"sha256:..."`` of its tensors; ``"random:sha256:..."`` where they are not trained.
        input: what it wants of an image or a video.
        depth, width: blocks L and channels d.
        tokens: tokens n of a block output, prefix tokens (CLS, registers) first.
        prefix_tokens: how many of them are not patches.
        grid: patch rows and columns; of a video (n_t, rows, columns), and its tokens lie in that order.
        tail: its frozen final norm and pooling.
        streamed: how its blocks pass through the device, if it was moved there with a budget.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        random: bool,
        input: InputSpec,
        file: MappedFile | None = None,
        tail: FrozenTail | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.name, self.input = name, input
        self._random, self._file = random, file
        self.streamed: StreamedTrunk | None = None
        self._rounded: dict[torch.dtype, list[Rounded]] = {}
        self.device = torch.device("cpu")
        if not hasattr(model, "blocks") or not hasattr(model, "forward_intermediates"):
            raise UserError(f"backbone {name!r} has no trunk of equal blocks: choose a ViT.")
        self._blocks: list[nn.Module] = list(model.blocks)  # type: ignore[arg-type]
        self.depth = len(self._blocks)
        passed: list[tuple[tuple[object, ...], object]] = []  # what the first block is given, and what it gives
        try:
            with torch.inference_mode(), ExitStack() as hooks:
                seen = self._blocks[0].register_forward_hook(lambda _, given, gives: passed.append((given, gives)))
                hooks.callback(seen.remove)
                image = torch.zeros(1, *input.shape)
                first = self._intermediates(image, [0], stop_early=True, output_fmt="NCHW")[0]
                shapes = self._intermediates(image, [0], stop_early=True, output_fmt="NLC")[0]
        except Exception as error:  # whatever a trunk of another kind makes of the question
            raise UserError(
                f"backbone {name!r} does not give its tokens block by block ({type(error).__name__}: {error}): "
                "choose a plain ViT."
            ) from error
        rows, columns = (first[0] if isinstance(first, tuple) else first).shape[-2:]
        patches, prefix = shapes if isinstance(shapes, tuple) else (shapes, shapes[:, :0])
        embed = getattr(model, "patch_embed", None)
        self.grid = embed.grid if isinstance(embed, TubeletEmbed) else (int(rows), int(columns))
        self.prefix_tokens, self.width = prefix.shape[1], patches.shape[2]
        self.tokens = self.prefix_tokens + patches.shape[1]
        if reason := _not_a_stream(*passed[-1], (1, self.tokens, self.width)):
            raise UserError(f"backbone {name!r} {reason}: choose a ViT whose blocks pass on one tensor of tokens.")
        self.tail = tail or read_tail(model, width=self.width, prefix_tokens=self.prefix_tokens)

    def around(self, model: nn.Module, *, tail: FrozenTail | None = None) -> "Backbone":
        """Give a backbone around a model that was made of this one's, frozen. Its ``weights`` are still this one's.

        Args:
            model: on the CPU, with points of the same shapes.
            tail: by default what the model ends in.

        Raises:
            UserError: for a model that does not give its tokens block by block.
        """
        found = Backbone(model, name=self.name, random=self._random, input=self.input, tail=tail)
        found.weights = self.weights
        return found

    def to(self, device: torch.device | str, *, budget: int | None = None) -> "Backbone":
        """Move the weights to a device and return self.

        Args:
            device: to compute on.
            budget: bytes of its memory that may be taken: the blocks stay on the host, and pass through the device in
                groups (``losa_cache.backbone.streamed``); without one, all weights are moved.
        """
        self.device = torch.device(device)
        self._rounded = {}
        if budget is None:
            self.streamed = None
            self.model.to(self.device)
        else:
            self.streamed = StreamedTrunk(
                self.model,
                self._blocks,
                self.device,
                budget,
                tokens=self.tokens,
                width=self.width,
                pixels=prod(self.input.shape),
                file=self._file,
            )
        return self

    @cached_property
    def weights(self) -> str:
        """Hash of the weights, computed when it is first asked for."""
        return ("random:" if self._random else "") + f"sha256:{weights_hash(self.model, self._file)}"

    @property
    def trunk_tokens(self) -> int:
        """Tokens of the residual stream: those of a point, unless points are pooled."""
        return self.tokens

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, as they are loaded."""
        return sum(tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers()))

    def fitting_batch(self, most: int, compute: torch.dtype) -> int:
        """Choose how many images, at most, a forward pass takes within the budget, if there is one."""
        return most if self.streamed is None else self.streamed.fitting_batch(most, compute)

    def groups(self, batch: int, compute: torch.dtype) -> list[range]:
        """Say which blocks are on the device together for batches of this size: all, if there is no budget.

        Raises:
            UserError: if the budget is too small.
        """
        return [range(self.depth)] if self.streamed is None else self.streamed.groups(batch, compute)

    def run(self, pixels: Tensor, points: Sequence[str], sink: Sink, *, compute: torch.dtype) -> None:
        """Run the trunk on a batch, without gradients, and hand on the value at each point as it comes.

        Args:
            pixels: ``(batch, *input.shape)``: uint8, as ``input.transform()`` gives frames, or float32 that
                ``input.normalise`` made of them.
            points: names (``losa_cache.points``), in any order.
            sink: is given a position in ``points`` and the value there ``(batch, tokens, width)``, prefix tokens first:
                an inference tensor on the device, to be copied before autograd sees it.
            compute: dtype of the matrix products (autocast); the residual stream stays float32, branches do not.

        Raises:
            UserError: for a branch of a trunk that does not keep its branches apart, or a budget that is too small.
        """
        if self.streamed is not None:
            self.run_all([pixels], points, [sink], compute=compute)
            return
        with ExitStack() as hooks, self._computing(compute):
            for at, point in enumerate(points):
                hooks.callback(watch(self._blocks, point, partial(sink, at)).remove)
            self._forward(pixels)

    def run_all(
        self, batches: Sequence[Tensor], points: Sequence[str], sinks: Sequence[Sink], *, compute: torch.dtype
    ) -> None:
        """Run the trunk on batches, each as :meth:`run` does and with a sink of its own.

        Within a budget they go through the blocks together, so that the weights are moved once for all of them.
        """
        if self.streamed is None:
            for pixels, sink in zip(batches, sinks, strict=True):
                self.run(pixels, points, sink, compute=compute)
            return
        forwards = [partial(self._forward, pixels) for pixels in batches]
        with self._computing(compute):
            self.streamed.run(forwards, points, sinks, largest=max(map(len, batches)), compute=compute)

    def outputs(self, pixels: Tensor, points: Sequence[str], *, compute: torch.dtype) -> list[Tensor]:
        """Run the trunk and return the values of :meth:`run` in the order of ``points``.

        Within a budget the images are run in batches that fit it, and the values come back on the host.
        """
        parts = pixels.split(self.fitting_batch(len(pixels), compute))
        found: list[dict[int, Tensor]] = [{} for _ in parts]

        def keeper(kept: dict[int, Tensor]) -> Sink:
            return kept.__setitem__ if self.streamed is None else lambda at, value: kept.update({at: value.cpu()})

        self.run_all(parts, points, list(map(keeper, found)), compute=compute)
        if len(found) == 1:
            return [found[0][at] for at in range(len(points))]
        return [torch.cat([kept[at] for kept in found]) for at in range(len(points))]

    def traced(self, images: Tensor, points: Sequence[str]) -> list[Tensor]:
        """Compute what :meth:`outputs` does as plain operations: what an exporter can follow, and autograd.

        It is computed in float32, unless the caller has entered autocast.

        Args:
            images: float32 ``(batch, *input.shape)``, normalised, on the device of all weights.
            points: as of :meth:`run`.
        """
        found: dict[int, Tensor] = {}
        with ExitStack() as hooks:
            for at, point in enumerate(points):
                hooks.callback(watch(self._blocks, point, partial(found.__setitem__, at)).remove)
            self._intermediates(images, [self.depth - 1], output_fmt="NLC")
        return [found[at] for at in range(len(points))]

    def require_branches(self) -> None:
        """Check, on an image of noise, that each block adds its attention and its MLP output to its input, and no more.

        Raises:
            UserError: for a trunk of another kind: parallel branches, or a norm behind the sum.
        """
        points = [EMBEDDING]
        for number in range(1, self.depth + 1):
            points += [*tapped_points("both", [number]), f"block.{number}"]
        stream = torch.empty(0)
        apart: list[str] = []

        def follow(at: int, value: Tensor) -> None:
            nonlocal stream
            kind = points[at].partition(".")[0]
            if kind == "block" and (stream - value).norm() > ROUNDING * value.norm():
                apart.append(points[at])
            stream = stream + value if kind in GATES else value

        seeded = torch.Generator().manual_seed(0)
        noise = torch.randint(0, 256, (1, *self.input.shape), dtype=torch.uint8, generator=seeded)
        self.run(noise.to(self.device), points, follow, compute=torch.float32)
        if apart:
            raise UserError(
                f"{apart[0]} of backbone {self.name!r} is not its input plus an attention and an MLP output: "
                "tap whole blocks."
            )

    def compute_dtype(self, precision: str) -> torch.dtype:
        """Choose the dtype of the matrix products for a cache of this precision.

        float16 is computed in kind, anything else that is coarser than float32 in bfloat16, where the device does that
        natively; else in float32.
        """
        if precision == "float16":
            return torch.float16 if self.device.type == "cuda" else torch.float32
        return torch.bfloat16 if precision != "float32" and has_bfloat16(self.device) else torch.float32

    @contextmanager
    def _computing(self, compute: torch.dtype) -> Generator[None, None, None]:
        half, rounded = compute != torch.float32, self.rounded_weights(compute)
        tf32 = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = tf32 and half  # or the patch embedding is rounded to 10 bits all the same
        try:
            with torch.inference_mode(), torch.autocast(self.device.type, compute, enabled=half), in_place(rounded):
                yield
        finally:
            torch.backends.cudnn.allow_tf32 = tf32

    def rounded_weights(self, compute: torch.dtype) -> list[Rounded]:
        """Give the copies of weights that forward passes use in this dtype: made once, on a GPU that has room for them.

        The numbers are the same without them (:mod:`losa_cache.backbone.rounded`), so room may decide.
        """
        if compute == torch.float32 or self.streamed is not None or self.device.type != "cuda":
            return []
        if compute not in self._rounded:
            room = available_memory(self.device) // ROUNDED_SHARE
            fits = size_of_rounded(self._blocks, compute) <= room
            with torch.inference_mode(False):
                self._rounded = {compute: round_weights(self._blocks, compute) if fits else []}
        return self._rounded[compute]

    def _forward(self, pixels: Tensor) -> None:
        pixels = pixels.to(self.device, non_blocking=True)
        images = self.input.normalise(pixels) if pixels.dtype == torch.uint8 else pixels
        self._intermediates(images, [self.depth - 1], output_fmt="NLC")

    def _intermediates(self, images: Tensor, indices: list[int], **options: Any) -> list[Any]:
        flat = images.flatten(1, -3)  # timm asks for four axes: a clip's frames lie side by side as channels
        return self.model.forward_intermediates(  # type: ignore[operator]
            flat, indices=indices, return_prefix_tokens=True, norm=False, intermediates_only=True, **options
        )


def _not_a_stream(given: tuple[object, ...], gives: object, shape: tuple[int, ...]) -> str:
    """Say why what a block is given and gives is no residual stream of this shape, or nothing."""
    for verb, value in (("takes", given[0] if given else None), ("gives", gives)):
        if not isinstance(value, Tensor):
            kind = f"{len(value)} values" if isinstance(value, tuple) else f"a {type(value).__name__}"
            return f"{verb} {kind} in each block, not its tokens alone"
        if tuple(value.shape) != shape:
            return f"{verb} a tensor of the shape {tuple(value.shape)[1:]} in each block, not {shape[1:]}"
    return ""


def load_backbone(
    name: str,
    *,
    weights: str | Path = PRETRAINED,
    img_size: int | None = None,
    resize: str = "crop",
    normalise: str = TIMM,
    seed: int = 0,
    frames: int | None = None,
    stride: int | None = None,
    inflation: str = CENTRAL,
    mapped: bool = False,
) -> Backbone:
    """Load a frozen backbone.

    Args:
        name: ``vit_s vit_b vit_l vit_h vit_g vit_G vit_e vit_digits`` or any timm ViT name; ``vivit_s`` ... or
            ``vivit:NAME`` for the video model made of it; ``vivit`` for a ViViT checkpoint.
        weights: ``"pretrained"`` (timm's own download), ``"random"`` (marked in every cache), or a checkpoint file, of
            the image model for a ``vivit_...``; for ``vivit`` a folder in Hugging Face's format.
        img_size: pixels of the square input; default: the backbone's own.
        resize: ``"crop"`` as timm's data config says, or ``"exact"``: resize without a crop.
        normalise: mean and deviation of the pixels: ``"timm"`` (the backbone's own), ``"imagenet"``, ``"inception"``,
            ``"clip"`` or ``"none"``.
        seed: of random weights.
        frames: of a video; default: 32 (``vivit_digits``: 4), or the checkpoint's own.
        stride: how far apart the frames are; 0: spread evenly over the whole video; default: 2.
        inflation: how a patch kernel becomes one of tubelets: ``"central"`` frame or ``"averaged"``.
        mapped: leave the weights of a safetensors file there, to be read when they are used: for
            ``Backbone.to(device, budget=...)``.

    Raises:
        UserError: for an unknown name, weights that cannot be had or do not fit, a trunk that is not a plain ViT, or
            options that do not belong to it.
    """
    require_counts(frames=frames, stride=stride or None, img_size=img_size)
    weights = str(weights)
    resolved = name if name == CHECKPOINT else full_name(name)
    made = resolved.startswith(VIDEO)
    if inflation != CENTRAL and not made:
        raise UserError(
            f"inflation is {inflation!r}, but {name!r} is not made of an image model: vivit_b, for one, is."
        )
    if resolved == CHECKPOINT:
        backbone = _load_checkpoint(weights, img_size=img_size, resize=resize, frames=frames, stride=stride)
        backbone.input = backbone.input.normalised(normalise)
        return backbone
    if not (frames is None and stride is None) and not made:
        raise UserError(f"backbone {name!r} takes images: frames and stride are for one of videos, as vivit_b.")
    trunk = resolved.removeprefix(VIDEO)
    if trunk == "vit_digits" and weights == PRETRAINED:
        weights = str(DIGITS_WEIGHTS)
    if trunk == "vit_e" and weights == PRETRAINED:
        raise UserError(
            f"no weights of {name!r} are public: pass a checkpoint with --weights FILE, or --weights random."
        )
    mapped = mapped and Path(weights).suffix == ".safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        make = hollow if mapped else partial(build, pretrained=weights == PRETRAINED)
        model = make(trunk, img_size=img_size)
    file = map_file(model, Path(weights)) if mapped else None
    if file is None and weights not in (PRETRAINED, RANDOM):
        load_file(model, Path(weights))
    if weights == PRETRAINED:
        require_sound(model, f"what was downloaded of {trunk!r}")
    config = resolve_model_data_config(model)
    if img_size is not None:
        config["input_size"] = (config["input_size"][0], img_size, img_size)
    spec = InputSpec.from_timm(config).resized(resize).normalised(normalise)
    if made:
        spec = replace(
            spec, frames=frames or FEW_FRAMES.get(trunk, FRAMES), stride=STRIDE if stride is None else stride
        )
        inflate(model, name=trunk, frames=spec.frames, inflation=inflation)
    return Backbone(model, name=resolved, random=weights == RANDOM, input=spec, file=file)


def _load_checkpoint(
    weights: str, *, img_size: int | None, resize: str, frames: int | None, stride: int | None
) -> Backbone:
    """Load a ViViT from a folder, which alone says what it wants of a video but the stride."""
    if weights in (PRETRAINED, RANDOM):
        raise UserError(
            f"backbone {CHECKPOINT!r} is what its checkpoint says: pass a folder in Hugging Face's format "
            "(config.json, model.safetensors) with --weights FOLDER."
        )
    model, name, spec = open_folder(Path(weights))
    for option, given, own in (("frames", frames, spec.frames), ("img-size", img_size, spec.size[2])):
        if given not in (None, own):
            raise UserError(f"{option} is {given}, but the checkpoint {weights!r} is for {own}.")
    spec = replace(spec, stride=spec.stride if stride is None else stride).resized(resize)
    return Backbone(model, name=name, random=False, input=spec)
