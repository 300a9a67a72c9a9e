"""Which pictures a protocol chose, written down by name so that the choice can be repeated elsewhere."""

from collections.abc import Sequence
from pathlib import Path

from rayssl.data import DataConfig, Pictures
from rayssl.evaluation.base import Evaluation


def write_chosen_pictures(
    evaluation: Evaluation,
    data: DataConfig,
    train: Pictures,
    *,
    data_seed: int,
    seeds: Sequence[int],
    folder: Path,
) -> list[Path]:
    """Write a line for each chosen training picture: its path or number, a tab, its class.

    Args:
        evaluation: The protocol; most choose none.
        data: The set, to be listed again for the names.
        train: The opened training pictures.
        data_seed: The seed that the set was split by.
        seeds: Of the repetitions; with several, the files' names end in "-seed1", "-seed2", ...
        folder: Where the files go.

    Returns:
        The files.
    """
    chosen = [evaluation.chosen_pictures(train, seed=seed) for seed in seeds]
    if not any(chosen):
        return []
    listed = data.build(seed=data_seed).train
    files = []
    for number, lists in enumerate(chosen, start=1):
        for name, rows in lists.items():
            file = folder / f"{name}{f'-seed{number}' if len(seeds) > 1 else ''}.txt"
            names = (f"{listed.name_of(int(train.numbers[row]))}\t{train.classes[train.labels[row]]}" for row in rows)
            file.write_text("".join(f"{line}\n" for line in names), encoding="utf-8")
            files.append(file)
    return files
