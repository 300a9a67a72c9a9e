"""Image encoders in five blocks. A new one: a file, and its config in the union below."""

from typing import Annotated

from pydantic import Field

from rayssl.backbones.base import NUM_BLOCKS, Backbone
from rayssl.backbones.layout import lay_out
from rayssl.backbones.resnet import ResNet, ResNetConfig
from rayssl.backbones.revnet import RevNet, RevNetConfig
from rayssl.backbones.weights import load_weights

AnyBackbone = Annotated[ResNetConfig | RevNetConfig, Field(discriminator="name")]

__all__ = [
    "NUM_BLOCKS",
    "AnyBackbone",
    "Backbone",
    "ResNet",
    "ResNetConfig",
    "RevNet",
    "RevNetConfig",
    "lay_out",
    "load_weights",
]
