"""Models as Hugging Face citizens: importing this package registers them with AutoConfig and AutoModel."""

from transformers import AutoConfig, AutoModel

from tagsds.models.matchers import MATCHERS, register
from tagsds.models.uniter import UniterModel
from tagsds.models.uniter.config import UniterConfig

AutoConfig.register(UniterConfig.model_type, UniterConfig, exist_ok=True)
AutoModel.register(UniterConfig, UniterModel, exist_ok=True)
for name, kind in MATCHERS.items():
    register(name, kind)

__all__ = ["MATCHERS", "UniterConfig", "UniterModel"]
