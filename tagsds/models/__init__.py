"""Models as Hugging Face citizens: importing this package registers them with AutoConfig and AutoModel."""

from transformers import AutoConfig, AutoModel

from tagsds.models.config import UniterConfig
from tagsds.models.uniter import UniterModel

AutoConfig.register(UniterConfig.model_type, UniterConfig, exist_ok=True)
AutoModel.register(UniterConfig, UniterModel, exist_ok=True)

__all__ = ["UniterConfig", "UniterModel"]
