"""Models as Hugging Face citizens: importing this package registers them with AutoConfig and AutoModel."""

from transformers import AutoConfig, AutoModel

from tagsds.models.matchers import MATCHERS
from tagsds.models.uniter import UniterModel
from tagsds.models.uniter.config import UniterConfig

AutoConfig.register(UniterConfig.model_type, UniterConfig, exist_ok=True)
AutoModel.register(UniterConfig, UniterModel, exist_ok=True)
for config_class, model_class in MATCHERS.values():
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModel.register(config_class, model_class, exist_ok=True)

__all__ = ["MATCHERS", "UniterConfig", "UniterModel"]
