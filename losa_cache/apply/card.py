"""The model card of an adapter, ``README.md``: what the Hugging Face hub shows of it. Pure; it imports no torch.

The front matter has the fields that the hub knows (https://huggingface.co/docs/hub/model-cards), as far as the files of
the adapter tell them.
"""

import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from losa_cache.data.names import OWN_NAMES
from losa_cache.inputs_config import RANDOM
from losa_cache.tasks import CLASSIFICATION, Metric, get_task
from losa_cache.text import shown
from losa_cache.tuned.spec import Method

SHOWN = 50  # classes that are listed
ELSEWHERE = ("ijepa", "robbyant", "apple_mclip", "apple_mclip_lt")
"""Ends of the names of ViTs whose weights lie elsewhere, or are not on the hub."""
_MARKS = re.compile(r"([\\`*_{}\[\]()#+!|~$-])")

Config = Mapping[str, Any]
Figures = Mapping[str, Any]


def card(config: Config, metrics: Sequence[Figures], *, license: str | None = None, repo: str = "") -> str:
    """Write the card.

    Args:
        config: of the adapter (``config.json``).
        metrics: what was measured (``metrics.json``).
        license: of the adapter, by the hub's name (``apache-2.0``).
        repo: ``owner/name`` on the hub, if it is there.
    """
    front = yaml.safe_dump(_front(config, metrics, license, repo), sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{front}---\n\n" + "\n".join(_body(config, metrics, repo)) + "\n"


def _front(config: Config, metrics: Sequence[Figures], license: str | None, repo: str) -> dict[str, Any]:
    front: dict[str, Any] = {"library_name": "losa-cache"}
    if license is not None:
        front["license"] = license
    if (base := _base_model(config)) is not None:
        front["base_model"] = base
    if (kind := _pipeline(config)) is not None:
        front["pipeline_tag"] = kind
    kind_of = ["losa", "side-tuning"] if config.get("method") is None else [config["method"]["name"]]
    front["tags"] = [*kind_of, "parameter-efficient-fine-tuning"]
    dataset = config["cache"]["fields"]["dataset"]["name"]
    if dataset not in OWN_NAMES:
        front["datasets"] = [dataset]
    if kind is not None and (results := [_result(config, kind, entry) for entry in metrics]):
        front["metrics"] = ["accuracy"]
        front["model-index"] = [{"name": repo.rpartition("/")[2] or _title(config), "results": results}]
    return front


def _base_model(config: Config) -> str | None:
    """Name the backbone on the hub: timm's own weights, of a model with a tag, lie there under the model's name."""
    name = str(config["cache"]["fields"]["backbone"]["name"]).removeprefix("vivit:").replace("_quickgelu", "")
    return f"timm/{name}" if config.get("pretrained") and "." in name and not name.endswith(ELSEWHERE) else None


def _pipeline(config: Config) -> str | None:
    if config.get("task", CLASSIFICATION) != CLASSIFICATION:
        return None
    moving = config["cache"]["fields"]["input"].get("frames", 1) > 1
    return "video-classification" if moving else "image-classification"


def _result(config: Config, kind: str, entry: Figures) -> dict[str, Any]:
    dataset = config["cache"]["fields"]["dataset"]["name"]
    return {
        "task": {"type": kind},
        "dataset": {"type": dataset, "name": dataset, "split": entry["split"]},
        "metrics": [
            {"type": "accuracy", "name": metric.title, "value": round(entry[metric.name] / 100, 6)}
            for metric in get_task(CLASSIFICATION).metrics
            if metric.share and isinstance(entry.get(metric.name), int | float)
        ],
    }


def _title(config: Config) -> str:
    fields = config["cache"]["fields"]
    return f"{fields['dataset']['name']}-{(config.get('method') or {}).get('name') or config['adapter']['side']}"


def _body(config: Config, metrics: Sequence[Figures], repo: str) -> list[str]:
    fields = config["cache"]["fields"]
    spec, backbone = fields["input"], fields["backbone"]
    place = f"hub:{repo}" if repo else "PATH_OF_THIS_FOLDER"
    moving = f", {spec['frames']} frames, every {spec['stride']}th" if spec.get("frames", 1) > 1 else ""
    task = config.get("task", CLASSIFICATION)
    lines = [
        f"# {plain(repo or _title(config))}",
        "",
        _what(config, plain(backbone["name"]), plain(fields["dataset"]["name"])),
        "",
        "## Use",
        "",
        "```sh",
        f"losa-cache predict {place} photos",
        "```",
        "",
        "```python",
        "import losa_cache as lc",
        "",
        *_in_python(config, place),
        "```",
        "",
        "## Figures",
        "",
        *_figures(task, metrics),
        "",
        "## Details",
        "",
        f"* task: {plain(task)}",
        f"* classes ({len(config['classes'])}): {_classes(config['classes'])}",
        *_thresholds(config),
        f"* input: {' x '.join(map(str, spec['size']))} (channels, height, width){moving}; "
        f"{plain(spec['interpolation'])}, crop {spec['crop_pct']:g} ({plain(spec['crop_mode'])}), mean "
        f"{_numbers(spec['mean'])}, standard deviation {_numbers(spec['std'])}",
        *_pixels(fields),
        *_blocks(config),
        f"* weights of the backbone: `{_hash(backbone['weights'])}`",
    ]
    if backbone["weights"].startswith(f"{RANDOM}:"):
        lines += ["", "**The backbone's weights are random**: this adapter is of no use but for tests."]
    return lines


def _in_python(config: Config, place: str) -> list[str]:
    """Show how it is used in Python."""
    if config.get("method") is None:
        return [f'adapter = lc.load_adapter("{place}")  # block outputs to logits']
    name = str(config["cache"]["fields"]["backbone"]["name"])
    return [
        f'backbone, adapter = lc.load_backbone({json.dumps(name)}), lc.load_adapter("{place}")',
        'model = lc.AdaptedModel(backbone, {"adapter": adapter})',
        'logits = model(pixels)["adapter"]  # pixels as backbone.input.transform() makes them',
    ]


def _blocks(config: Config) -> list[str]:
    """Say which blocks are read; what trains inside the backbone reads what the last one gives."""
    if config.get("method"):
        return []
    return [f"* blocks that are read: {', '.join(map(str, config['layers']))} ({plain(config['tap'])})"]


def _what(config: Config, backbone: str, dataset: str) -> str:
    """Say what was trained, and by whom it was published."""
    if (method := config.get("method")) is None:
        shape = config["adapter"]
        rank = f", rank {shape['rank']}" if shape["rank"] else ""
        return (
            f"A side network (`{shape['side']}`{rank}) beside a frozen {backbone}, trained on {dataset} by losa-cache: "
            "Low-Rank Side Adaptation (Mercea et al., CVPR 2024). It holds no weights of the backbone."
        )
    own = Method(**method)
    rank, source = f", rank {own.rank}" if own.rank else "", f" ({own.spec.source})" if own.spec.source else ""
    return (
        f"What `{own}`{rank} has trained inside {backbone} on {dataset}, by losa-cache: {own.spec.label}{source}. It "
        "holds the weights that were trained, and no others of the backbone."
    )


def _figures(task: str, metrics: Sequence[Figures]) -> list[str]:
    if not metrics:
        return ["Nothing was measured."]
    known = get_task(task).metrics
    titles = [metric.label for metric in known]
    rule = "|---" * (len(titles) + 2) + "|"
    lines = [f"| split | samples | {' | '.join(titles)} |", rule]
    for entry in metrics:
        values = [_shown(metric, entry.get(metric.name)) for metric in known]
        lines.append(f"| {plain(entry['split'])} | {entry['samples']} | {' | '.join(values)} |")
    return lines


def _shown(metric: Metric, value: object) -> str:
    return metric.show(value).removesuffix(f" {metric.unit}") if isinstance(value, int | float) else ""


def _classes(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more (config.json)" if len(names) > SHOWN else ""
    return ", ".join(map(plain, names[:SHOWN])) + more


def _thresholds(config: Config) -> list[str]:
    """Say from which probability on each of several labels is predicted."""
    chosen = config.get("constants", {}).get("thresholds")
    if chosen is None:
        return []
    each = [f"{plain(name)} {value:.3f}" for name, value in zip(config["classes"], chosen, strict=False)]
    more = f" and {len(each) - SHOWN} more (config.json)" if len(each) > SHOWN else ""
    return [f"* thresholds, the probability from which on a label is predicted: {', '.join(each[:SHOWN])}{more}"]


def _pixels(fields: Mapping[str, Any]) -> list[str]:
    rules = ", ".join(f"{name} {value}" for name, value in fields.get("pixels", {}).items())
    return [f"* decoding of images that are not 8-bit RGB: {plain(rules)}"] if rules else []


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _hash(text: str) -> str:
    return re.sub(r"[^0-9A-Za-z:]", "", text)


def plain(text: str) -> str:
    """Give text that is neither Markdown nor HTML, in one line."""
    return _MARKS.sub(r"\\\1", html.escape(shown(str(text)), quote=False))
