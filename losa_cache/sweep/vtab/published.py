"""The other rows of the paper's Table 1: what was published of other methods on VTAB-1k, with ViT-B of ImageNet-21k.

All figures are as the LoSA paper prints them (Mercea et al., CVPR 2024, Table 1); the publications that it cites for
each row are named here. Nothing of it was measured by losa-cache.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A row.

    Attributes:
        label: the method.
        sources: the publications that the paper cites for it.
        parameters: trained ones in millions, without the classifier, as printed.
        tasks: top-1 in percent, in the order of the tasks.
        means: of the three groups, and the mean of these, as printed.
    """

    label: str
    sources: str
    parameters: str
    tasks: str
    means: str


VPT = "Jia et al., Visual Prompt Tuning, ECCV 2022"
CONVPASS = "Jie and Deng, Convolutional Bypasses Are Better Vision Transformer Adapters, arXiv 2207.07039"
FACT = "Jie and Deng, FacT, AAAI 2023"
RES_TUNING = "Jiang et al., Res-Tuning, NeurIPS 2023"

PUBLISHED = (
    Published(
        "full fine-tuning",
        f"{VPT}; {CONVPASS}",
        "85.8",
        "68.9 87.7 64.3 97.2 86.9 87.4 38.8 79.7 95.7 84.2 73.9 56.3 58.6 41.7 65.5 57.5 46.7 25.7 29.1",
        "75.9 83.4 47.6 68.9",
    ),
    Published(
        "linear",
        f"{VPT}; {CONVPASS}",
        "0",
        "64.4 85.0 63.2 97.0 86.3 36.6 51.0 78.5 87.5 68.5 74.0 34.3 30.6 33.2 55.4 12.5 20.0 9.6 19.2",
        "69.1 77.1 26.9 57.6",
    ),
    Published(
        "BitFit",
        f"Ben Zaken et al., BitFit, arXiv 2106.10199; {FACT}",
        "0.10",
        "72.8 87.0 59.2 97.5 85.3 59.9 51.4 78.7 91.6 72.9 69.8 61.5 55.6 32.4 55.9 66.6 40.0 15.7 25.1",
        "73.3 78.3 44.1 65.2",
    ),
    Published(
        "VPT",
        f"{VPT}; {CONVPASS}",
        "0.53",
        "78.8 90.8 65.8 98.0 88.3 78.1 49.6 81.8 96.1 83.4 68.4 68.5 60.0 46.5 72.8 73.6 47.9 32.9 37.8",
        "78.5 82.4 55.0 72.0",
    ),
    Published(
        "Res-Tuning-Bypass",
        RES_TUNING,
        "0.42",
        "64.5 88.8 73.2 99.4 90.6 63.5 57.2 85.5 95.2 82.4 75.2 70.4 61.0 40.2 66.8 79.2 52.6 26.0 49.3",
        "76.7 84.6 55.7 72.3",
    ),
    Published(
        "Adapter",
        f"Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019; {CONVPASS}",
        "0.16",
        "69.2 90.1 68.0 98.8 89.9 82.8 54.3 84.0 94.9 81.9 75.5 80.9 65.3 48.6 78.3 74.8 48.5 29.9 41.6",
        "79.0 84.1 58.5 73.9",
    ),
    Published(
        "LoRA",
        f"Hu et al., LoRA, ICLR 2022; {CONVPASS}",
        "0.29",
        "67.1 91.4 69.4 98.8 90.4 85.3 54.0 84.9 95.3 84.4 73.6 82.9 69.2 49.8 78.5 75.7 47.1 31.0 44.0",
        "79.5 84.6 59.8 74.5",
    ),
    Published(
        "AdaptFormer",
        f"Chen et al., AdaptFormer, NeurIPS 2022; {CONVPASS}",
        "0.16",
        "70.8 91.2 70.5 99.1 90.9 86.6 54.8 83.0 95.8 84.4 76.3 81.9 64.3 49.3 80.3 76.3 45.7 31.7 41.1",
        "80.6 84.9 58.8 74.7",
    ),
    Published(
        "NOAH",
        f"Zhang et al., Neural Prompt Search, arXiv 2206.04673; {CONVPASS}",
        "0.36",
        "69.6 92.7 70.2 99.1 90.4 86.1 53.7 84.4 95.4 83.9 75.8 82.8 68.9 49.9 81.7 81.8 48.3 32.8 44.2",
        "80.3 84.9 61.3 75.5",
    ),
    Published(
        "FacT-TK",
        FACT,
        "0.06",
        "70.6 90.6 70.8 99.1 90.7 88.6 54.1 84.8 96.2 84.5 75.7 82.6 68.2 49.8 80.7 80.8 47.4 33.2 43.0",
        "80.6 85.3 60.7 75.6",
    ),
    Published(
        "Res-Tuning",
        RES_TUNING,
        "0.55",
        "75.2 92.7 71.9 99.3 91.9 86.7 58.5 86.7 95.6 85.0 74.6 80.2 63.6 50.6 80.2 85.4 55.7 31.9 42.0",
        "82.3 85.5 61.2 76.3",
    ),
    Published(
        "Convpass",
        CONVPASS,
        "0.33",
        "72.3 91.2 72.2 99.2 90.9 91.3 54.9 84.2 96.1 85.3 75.6 82.3 67.9 51.3 80.0 85.9 53.1 36.4 44.4",
        "81.7 85.3 62.7 76.6",
    ),
    Published(
        "HST",
        "Lin et al., Hierarchical Side-Tuning for Vision Transformers, arXiv 2310.05393",
        "0.78",
        "76.7 94.1 74.8 99.6 91.1 91.2 52.3 87.1 96.3 88.6 76.5 85.4 63.7 52.9 81.7 87.2 56.8 35.8 52.1",
        "82.8 87.1 64.5 78.1",
    ),
)
"""All rows but those of LoSA (``record.PAPER``), in the table's order."""
