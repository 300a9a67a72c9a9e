"""Image encoders in five blocks. A new one: a file, and its config in the union below."""

from rayssl.backbones.base import NUM_BLOCKS, Backbone
from rayssl.backbones.resnet import ResNet, ResNetConfig

AnyBackbone = ResNetConfig

__all__ = ["NUM_BLOCKS", "AnyBackbone", "Backbone", "ResNet", "ResNetConfig"]
