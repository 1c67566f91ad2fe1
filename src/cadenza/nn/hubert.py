"""Frozen HuBERT (arXiv:2106.07447), wav2vec 2.0, WavLM or MERT (arXiv:2306.00107) models of transformers."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cadenza.core.checkpoint import check_finite, check_state_dict
from cadenza.core.errors import CheckpointError
from cadenza.nn.frozen import FrozenEncoder, save_model

# MERT has the architecture of HuBERT, and options of which HuBERT covers these values
_ARCHITECTURES = {"hubert": "hubert", "mert_model": "hubert", "wav2vec2": "wav2vec2", "wavlm": "wavlm"}
_SUPPORTED_VALUES = {"feature_extractor_cqt": (False, None), "deepnorm": (False, None), "attention_relax": (-1.0, None)}
_TRAINING_ONLY = ("masked_spec_embed", "quantizer.", "project_", "encoder_mask_emb", "final_proj.", "label_embs", "lm_head.")


class HubertEncoder(FrozenEncoder[nn.Module]):
    """The frozen model that a spec names by `model` and `revision`."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """Return config.json; raise CheckpointError for an unsupported model."""
        config = self.source.read_json("config.json", of="a HuBERT model")
        kind = config.get("model_type")
        if kind not in _ARCHITECTURES:
            raise CheckpointError(f"'{self.source.model}' has model_type {kind!r}. Expected one of {', '.join(_ARCHITECTURES)}")
        for key, supported in _SUPPORTED_VALUES.items():
            if kind == "mert_model" and config.get(key) not in supported:
                raise CheckpointError(
                    f"'{self.source.model}' has {key}: {config[key]!r}, which is not supported. Expected {supported[0]!r}"
                )
        return config

    @property
    def dim(self) -> int:
        """Width of the frames."""
        return self.config.get("hidden_size", 768)

    def weights(self) -> dict[str, Tensor]:
        """Return the stored weights by current names, without those that only pretraining needs."""
        state_dict: dict[str, Tensor] = {}
        for name, x in self.source.load_state_dict(("",)).items():
            head, _, rest = name.partition(".")
            key = rest if head in _ARCHITECTURES.values() else name
            for old, new in (("g", "original0"), ("v", "original1")):
                key = key.replace(f".weight_{old}", f".parametrizations.weight.{new}")
            if not key.startswith(_TRAINING_ONLY):
                state_dict[key] = x
        return state_dict

    def build(self) -> nn.Module:
        """Return the model with its weights, in evaluation mode."""
        from transformers import AutoConfig, AutoModel

        fields = {**self.config, "model_type": _ARCHITECTURES[self.config["model_type"]], "apply_spec_augment": False}
        for name in ("auto_map", "architectures", *_SUPPORTED_VALUES):
            fields.pop(name, None)
        with torch.inference_mode(False):  # a model loaded by a request may be trained later
            with torch.device("meta"):
                config = AutoConfig.for_model(**fields)
                model = AutoModel.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
            state, weights = model.state_dict(), self.weights()
            expected = {name: x for name, x in state.items() if not name.startswith(_TRAINING_ONLY)}
            check_state_dict(weights, expected, self.source.model)
            check_finite(weights, source=self.source.model)
            rest = {name: torch.zeros(x.shape) for name, x in state.items() if name not in expected}
            model.load_state_dict({name: x.float() for name, x in weights.items()} | rest, assign=True)
        return model.requires_grad_(False)

    def save(self, folder: Path) -> None:
        """Write the config and the weights to a new folder."""
        save_model(folder, self.config, [], self.weights())
