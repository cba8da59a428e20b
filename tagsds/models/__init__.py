"""Models as Hugging Face citizens: importing this package registers them with AutoConfig and AutoModel."""

from transformers import AutoConfig, AutoModel

from tagsds.models.config import UniterConfig
from tagsds.models.matchers import MATCHERS
from tagsds.models.uniter import UniterModel

AutoConfig.register(UniterConfig.model_type, UniterConfig, exist_ok=True)
AutoModel.register(UniterConfig, UniterModel, exist_ok=True)
for _config, _model in MATCHERS.values():
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)

__all__ = ["UniterConfig", "UniterModel"]
