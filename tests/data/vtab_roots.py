"""Folders of VTAB tasks, as NOAH's script writes them: each split has its list, and copies of its images."""

from pathlib import Path

from PIL import Image

LABELS = {
    "train800": {i: i % 3 for i in range(14)},
    "val200": {i: (i + 1) % 3 for i in range(6)},
    "test": {i: i % 3 for i in range(9)},
}
"""Number of an image to its label, which also is how red it is."""


def write_task(root: Path, *, more: dict[str, dict[int, int]] | None = None) -> Path:
    """Write tiny images and all four lists; the one of both training parts numbers its own copies, mixed."""
    more = more or {}
    splits = {name: own | more.get(name, {}) for name, own in LABELS.items()}
    both = sorted([*splits["train800"].values(), *splits["val200"].values()])
    for name, labels in {**splits, "train800val200": dict(enumerate(both))}.items():
        folder = root / "images" / name
        folder.mkdir(parents=True)
        lines = []
        for number, label in labels.items():
            Image.new("RGB", (8, 8), (label, 120 * label, 7 * number)).save(folder / f"{number:06d}.png")
            lines.append(f"images/{name}/{number:06d}.png {label}\n")
        (root / f"{name}.txt").write_text("".join(lines))
    return root
