"""The base of every config class: frozen, strict about keys, documented by the strings under its fields."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A piece of a recipe. Fields can't be changed and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
