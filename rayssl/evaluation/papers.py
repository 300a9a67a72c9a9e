"""What the papers report: the numbers that stand beside ours.

Sources: PSL, Progressive Stage-wise Learning for Unsupervised Feature Representation Enhancement (CVPR 2021), Tables
4-9; MGTA, Mutual Guidance to Train Auto-Encoders, Tables 2 and 3. All in percent. The random network of MGTA's Table 3
diverged ("-"), so that it has no number here.
"""

from dataclasses import dataclass

_BLOCKS = ("b1", "b2", "b3", "b4", "b5")


@dataclass(frozen=True)
class PaperNumber:
    """One cell of a paper's table."""

    metric: str
    """Our name of what it measures, such as `linear_probe/b4/top1`."""
    data: str
    """Our name of the data set that it is measured on."""
    row: str
    """The table's row; "Supervised" and "Random" are rows too."""
    percent: float
    """The number."""
    table: str
    """Where it stands."""
    setting: str
    """Backbone, pre-training set and its length, as far as the paper says."""

    def __str__(self) -> str:
        return f"{self.percent:.1f} ({self.table}, {self.row}: {self.setting})"


def paper_numbers(metric: str, *, data: str) -> list[PaperNumber]:
    """What the papers report for a metric on a data set, every row of it."""
    return [each for each in NUMBERS if each.metric == metric and each.data == data]


def paper_number(metric: str, *, data: str, row: str | None) -> PaperNumber | None:
    """The row that fits a network; None if the papers have none."""
    return next((each for each in paper_numbers(metric, data=data) if each.row == row), None)


def _blocks(table: str, backbone: str, rows: dict[str, tuple[tuple[float, ...], str]]) -> list[PaperNumber]:
    """Tables 5 and 6: a number for each block, and the best of them."""
    return [
        PaperNumber(f"linear_probe/{block}/top1", "imagenet", row, percent, table, f"{backbone}, ImageNet, {length}")
        for row, (percents, length) in rows.items()
        for block, percent in zip((*_BLOCKS, "best"), (*percents, max(percents)), strict=True)
    ]


def _column(
    metric: str, data: str, table: str, rows: dict[str, tuple[float, str]], backbone: str = "ResNet-50"
) -> list[PaperNumber]:
    return [
        PaperNumber(metric, data, row, percent, table, f"{backbone}, {setting}")
        for row, (percent, setting) in rows.items()
    ]


_JIGSAW, _CONTRASTIVE, _LABELS = "ImageNet, 180 epochs", "ImageNet, 200 epochs", "ImageNet with labels"
_TRANSFER_ROWS = ("Supervised", "Jigsaw", "Jigsaw+PSL", "Rotation", "Rotation+PSL")
_TRANSFER_SETTINGS = (_LABELS, "ImageNet", _JIGSAW, "ImageNet", _JIGSAW)


def _transfer(metric: str, data: str, table: str, percents: tuple[float, ...]) -> list[PaperNumber]:
    rows = {
        row: (percent, setting)
        for row, percent, setting in zip(_TRANSFER_ROWS, percents, _TRANSFER_SETTINGS, strict=True)
    }
    return _column(metric, data, table, rows)


def _frozen_body(data: str, percents: tuple[float, float, float, float]) -> list[PaperNumber]:
    """A column of MGTA's Table 3: detection with B1..B4 frozen."""
    rows = ("IAE", "MGTA (k=100)", "MGTA (k=300)", "Supervised")
    settings = ("miniImageNet, 100 epochs", "miniImageNet", "miniImageNet", "with labels")
    cells = {row: (percent, setting) for row, percent, setting in zip(rows, percents, settings, strict=True)}
    return _column("detection/mgta/ap50", data, "MGTA Table 3", cells)


NUMBERS: tuple[PaperNumber, ...] = (
    *_column(
        "linear_probe/best/top1",
        "imagenet",
        "PSL Table 4",
        {
            "SimCLR": (61.9, _CONTRASTIVE),
            "SimCLR+PSL": (64.3, _CONTRASTIVE),
            "MoCov2": (67.5, _CONTRASTIVE),
            "MoCov2+PSL": (68.1, _CONTRASTIVE),
        },
    ),
    *_blocks(
        "PSL Table 5",
        "ResNet-50",
        {
            "Supervised": ((11.6, 33.3, 48.7, 67.9, 75.5), "with labels"),
            "Jigsaw": ((12.4, 28.0, 39.9, 45.7, 34.2), "end to end"),
            "Jigsaw+SL": ((10.8, 27.2, 39.6, 45.5, 34.7), "180 epochs"),
            "Jigsaw+PSL": ((10.9, 27.0, 43.2, 50.9, 38.5), "180 epochs"),
            "Jigsaw+PSL_f": ((10.8, 27.3, 43.1, 51.0, 38.2), "180 epochs"),
        },
    ),
    *_blocks(
        "PSL Table 6",
        "RevNet-50",
        {
            "Supervised (RevNet-50)": ((11.7, 32.6, 47.8, 66.6, 74.3), "with labels"),
            "Rotation": ((10.9, 30.1, 40.2, 48.6, 46.5), "end to end"),
            "Rotation+SL": ((11.1, 29.1, 41.5, 50.7, 47.9), "180 epochs"),
            "Rotation+PSL": ((11.3, 30.8, 42.9, 53.3, 49.5), "180 epochs"),
            "Rotation+PSL_f": ((10.5, 31.1, 42.1, 52.9, 49.7), "180 epochs"),
        },
    ),
    *_transfer("semi_supervised/1_percent/top5", "imagenet", "PSL Table 7", (48.4, 45.4, 48.7, 52.1, 54.8)),
    *_transfer("semi_supervised/10_percent/top5", "imagenet", "PSL Table 7", (80.4, 79.6, 83.5, 82.5, 83.7)),
    *_transfer("voc07_svm/best/map", "voc2007", "PSL Table 9", (87.5, 64.5, 67.2, 63.5, 65.9)),
    *_transfer("linear_probe/best/top1", "places205", "PSL Table 9", (51.5, 41.2, 44.7, 41.9, 43.0)),
    *_transfer("linear_probe/best/top1", "inaturalist", "PSL Table 9", (45.4, 21.3, 24.1, 23.0, 25.9)),
    *_transfer("detection/psl/ap", "voc0712", "PSL Table 8", (52.6, 48.9, 51.1, 46.3, 47.6)),
    *_transfer("detection/psl/ap50", "voc0712", "PSL Table 8", (81.1, 75.1, 78.9, 72.5, 74.6)),
    *_transfer("detection/psl/ap75", "voc0712", "PSL Table 8", (57.4, 52.9, 55.3, 49.3, 51.1)),
    *_transfer("detection/psl/delta_ap75", "voc0712", "PSL Table 8", (0.0, -4.5, -2.1, -8.1, -6.3)),
    *_frozen_body("voc2007", (11.27, 15.88, 15.07, 33.67)),
    *_frozen_body("voc0712", (17.01, 21.19, 19.84, 37.84)),
    *_column(
        "voc07_svm/b4/map",
        "voc2007",
        "MGTA Table 2",
        {
            "Random": (8.0, "not trained"),
            "IAE": (23.8, "miniImageNet, 100 epochs"),
            "MGTA (k=100)": (29.7, "miniImageNet"),
            "MGTA (k=300)": (31.3, "miniImageNet"),
            "Supervised": (52.8, "with labels"),
        },
    ),
)
"""Every number of the tables that an evaluation here measures."""
