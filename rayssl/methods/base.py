"""What a pre-training method is to the rest: an encoder and a list of stages to be trained one after another."""

from typing import Protocol

from rayssl.backbones import Backbone
from rayssl.training.loop import StageSchedule
from rayssl.training.stage import Stage


class Method(Protocol):
    """A method bound to its encoder."""

    encoder: Backbone
    num_stages: int

    def build_stage(self, index: int) -> Stage:
        """Make stage number `index` (from 0) around the encoder, with a fresh head."""

    def schedule(self, index: int) -> StageSchedule:
        """Where stage `index` stands in the run."""
