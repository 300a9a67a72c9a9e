"""The parts of the page about a run's features: nearest neighbours, and a map."""

from collections.abc import Iterator

import torch
from torch import Tensor

from rayssl.backbones import NUM_BLOCKS
from rayssl.errors import CheckpointError
from rayssl.html_report.examples import image_uri
from rayssl.html_report.feature_space import (
    block_features,
    centre_views,
    choose_queries,
    class_colours,
    neighbours,
    project,
    same_class_share,
)
from rayssl.html_report.figures import feature_map
from rayssl.html_report.page import Neighbour, figure, heading, neighbour_table, paragraph
from rayssl.html_report.pictures import RunPictures
from rayssl.html_report.records import RunRecord
from rayssl.html_report.tables import best_block
from rayssl.sources import load_encoder

_QUERIES = 8
_NEIGHBOURS = 5
_FEWEST = 3
"""Pictures below which there is nothing to compare."""


def feature_sections(run: RunRecord, pictures: RunPictures) -> Iterator[str]:
    """Nearest neighbours and a map by the best probed block of the newest encoder."""
    weights = run.weights
    if weights is None:
        yield heading(2, "Features")
        yield paragraph("There is no encoder yet: the first stage has not come to its end.", kind="warning")
        return
    if len(pictures.told) < _FEWEST:
        return
    try:
        encoder = load_encoder(run.config.backbone, weights, seed=run.config.seed)
    except CheckpointError as error:
        yield heading(2, "Features")
        yield paragraph(f"The encoder can't be read: {error}", kind="warning")
        return
    best, _ = best_block(run)
    block = best or NUM_BLOCKS
    which = f"B{block}, {'the best probed block' if best is not None else 'the last block'}"
    if weights.is_dir():
        which += f", as {weights.name} left it"
    features = block_features(run.config, encoder, pictures.told, block=block)
    about = f"{which}, averaged over all places, of {len(pictures.told):,} pictures ({pictures.where})"
    yield heading(2, "Nearest neighbours")
    yield _neighbours(run, pictures, features, block=block, about=about)
    yield heading(2, "Map of the features")
    yield _map(run, pictures, features, about=about)


def _neighbours(run: RunRecord, pictures: RunPictures, features: Tensor, *, block: int, about: str) -> str:
    told = pictures.told
    near, cosines = neighbours(features, count=_NEIGHBOURS)
    queries = choose_queries(told.labels, _QUERIES).tolist()
    needed = sorted({*queries, *near[queries].flatten().tolist()})
    views = dict(zip(needed, centre_views(run.config, told, needed), strict=True))

    def cell(row: int, cosine: float | None = None, *, is_same: bool = False) -> Neighbour:
        label = int(told.labels[row])
        name = told.classes[label] if label >= 0 else ""
        return Neighbour(image_uri(views[row]), name, "" if cosine is None else f"{cosine:.3f}", is_same)

    table_rows = [
        [
            cell(query),
            *(
                cell(row, cosine, is_same=told.labels[row] == told.labels[query] >= 0)
                for row, cosine in zip(near[query].tolist(), cosines[query].tolist(), strict=True)
            ),
        ]
        for query in queries
    ]
    caption = f"By the cosine (below each picture) of the features of {about}. {_judge(run, pictures, near, block)}"
    return neighbour_table(table_rows, caption)


def _judge(run: RunRecord, pictures: RunPictures, near: Tensor, block: int) -> str:
    """How often neighbours are of the same class, beside the untrained network's."""
    told = pictures.told
    labels = torch.from_numpy(told.labels)
    if not bool((labels >= 0).any()):
        return "The pictures have no labels that would say which are alike."
    untrained = load_encoder(run.config.backbone, None, seed=run.config.seed)
    features = block_features(run.config, untrained, told, block=block)
    before = same_class_share(neighbours(features, count=_NEIGHBOURS)[0], labels)
    return (
        f"Bold: of the same class. Over all {len(told):,} pictures {same_class_share(near, labels):.0%} of the "
        f"{_NEIGHBOURS} nearest are; of the same network before training {before:.0%}. The rows were not chosen by how "
        "well they do."
    )


def _map(run: RunRecord, pictures: RunPictures, features: Tensor, *, about: str) -> str:
    told = pictures.told
    points, method = project(features, seed=run.config.seed)
    colours, legend = class_colours(told.labels, told.classes)
    names = (f"{method} 1 (no unit)", f"{method} 2 (no unit)")
    meaning = (
        "It shows who is near whom; distances between groups, and how large they look, mean nothing."
        if method == "t-SNE"
        else "These are the two directions in which the features vary most; all others are not seen."
    )
    drawing = feature_map(points, colours, names=names)
    return figure(drawing, f"{method} of the normalised features of {about}. {meaning}", legend=legend)
