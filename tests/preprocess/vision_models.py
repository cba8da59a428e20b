"""Tiny vision models with random weights, their image processors, and pictures to run them on, written to folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)  # fmt: skip

SIDE, PATCH, WIDTH = 32, 8, 16
SMALL = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
LABELS = {i: f"thing {i}" for i in range(5)}


def _backbone() -> ResNetConfig:
    return ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], out_features=["stage4"])


def _detr(config_class, **more):
    return config_class(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=_backbone(), d_model=WIDTH,
        encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, num_queries=14, id2label=LABELS, label2id={name: i for i, name in LABELS.items()}, **more,
    )  # fmt: skip


def _clip():
    text = CLIPTextConfig(vocab_size=20, **SMALL, max_position_embeddings=8, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    vision = CLIPVisionConfig(**SMALL, image_size=SIDE, patch_size=PATCH)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8))


def _square():
    return ViTImageProcessor(size={"height": SIDE, "width": SIDE})


def _cropped(processor_class, shortest=SIDE):
    return processor_class(size={"shortest_edge": shortest}, crop_size={"height": SIDE, "width": SIDE}, do_center_crop=True)


def _scaled(processor_class):
    return processor_class(size={"shortest_edge": 32, "longest_edge": 64})


MODELS = {
    "vit": lambda: (ViTModel(ViTConfig(**SMALL, image_size=SIDE, patch_size=PATCH)), _square()),
    "clip": lambda: (_clip(), _cropped(CLIPImageProcessor)),
    "dinov2": lambda: (Dinov2Model(Dinov2Config(**SMALL, image_size=SIDE, patch_size=PATCH)), _cropped(BitImageProcessor, 40)),
    "dinov2-registers": lambda: (
        Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SMALL, image_size=SIDE, patch_size=PATCH, num_register_tokens=3)),
        _cropped(BitImageProcessor, 40),
    ),
    "detr": lambda: (DetrForObjectDetection(_detr(DetrConfig)), _scaled(DetrImageProcessor)),
    "conditional-detr": lambda: (ConditionalDetrForObjectDetection(_detr(ConditionalDetrConfig)), _scaled(DetrImageProcessor)),
    "yolos": lambda: (
        YolosForObjectDetection(
            YolosConfig(**SMALL, image_size=[SIDE, 2 * SIDE], patch_size=PATCH, num_detection_tokens=13, id2label=LABELS)
        ),
        _scaled(YolosImageProcessor),
    ),
}


def write_model(folder: Path, name: str) -> Path:
    """Weights far enough from zero that pictures and queries differ."""
    torch.manual_seed(0)
    model, processor = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


SIZES = {"a": (60, 40), "b": (40, 60), "c": (60, 40), "d": (33, 33), "e": (90, 45)}


def write_pictures(folder: Path) -> dict[str, Path]:
    """Drawn pictures of several sizes; one grey, one with transparency, one in a folder of its own."""
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    out = {}
    for number, (name, (width, height)) in enumerate(SIZES.items()):
        base = rng.integers(0, 255, (5, 7, 3), dtype=np.uint8)
        picture = Image.fromarray(base).resize((width, height))
        picture = picture.convert({"b": "L", "c": "RGBA"}.get(name, "RGB"))
        out[name] = folder / ("more" if name == "d" else ".") / f"{name}.{'png' if number % 2 else 'jpg'}".replace("c.jpg", "c.png")
        picture.save(out[name])
    return out


def write_split(path: Path, names: list[str], dev: list[str] = ()) -> Path:
    """A Karpathy JSON with two captions a picture."""
    images = [
        {"filename": f"{name}.jpg", "split": "val" if name in dev else "train",
         "sentences": [{"raw": f"A thing {name} {k}.", "sentid": 2 * i + k} for k in range(2)]}
        for i, name in enumerate([*names, *dev])
    ]  # fmt: skip
    path.write_text(json.dumps({"images": images}))
    return path


def gradient(width: int, height: int) -> Image.Image:
    """Red tells x, green tells y: 0 to 255 over the picture."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return Image.fromarray((np.stack([x, y, 0 * x], axis=-1) * 255).round().astype(np.uint8))
