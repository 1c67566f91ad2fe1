"""A pretrained listener: a HuBERT (arXiv:2106.07447) or its kin, such as MERT (2306.00107), as frames of a sound."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cadenza.core.checkpoint import check_finite, check_state_dict
from cadenza.core.errors import CheckpointError
from cadenza.nn.frozen import FrozenEncoder

_KINDS = {"hubert": "hubert", "mert_model": "hubert", "wav2vec2": "wav2vec2", "wavlm": "wavlm"}  # MERT is a HuBERT of music
_OTHERWISE = {"feature_extractor_cqt": (False, None), "deepnorm": (False, None), "attention_relax": (-1.0, None)}  # what is not
_OF_TRAINING = ("masked_spec_embed", "quantizer.", "project_", "encoder_mask_emb", "final_proj.", "label_embs", "lm_head.")


class HubertEncoder(FrozenEncoder[nn.Module]):
    """The frozen model of a spec, which names it by `model` and `revision`."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """What config.json says; CheckpointError where that is another kind of model."""
        config = self.source.read_json("config.json", of="a model that listens")
        kind = config.get("model_type")
        if kind not in _KINDS:
            raise CheckpointError(f"'{self.source.model}' is a {kind!r}; give a model of one of the types {', '.join(_KINDS)}")
        for key, (only, *others) in _OTHERWISE.items():
            if kind == "mert_model" and config.get(key, only) not in (only, *others):
                raise CheckpointError(
                    f"'{self.source.model}' has {key}: {config[key]!r}, which cannot be loaded; only {only!r} can"
                )
        return config

    @property
    def dim(self) -> int:
        """The width of its frames."""
        return self.config.get("hidden_size", 768)

    def weights(self) -> dict[str, Tensor]:
        """The weights as they are stored, by today's names, without those that only its own training needs."""
        found: dict[str, Tensor] = {}
        for name, x in self.source.load_state_dict(("",)).items():
            head, _, rest = name.partition(".")
            key = rest if head in _KINDS.values() else name
            key = key.replace(".weight_g", ".parametrizations.weight.original0")
            key = key.replace(".weight_v", ".parametrizations.weight.original1")
            if not key.startswith(_OF_TRAINING):
                found[key] = x
        return found

    def build(self) -> nn.Module:
        """The model itself, in evaluation."""
        from transformers import AutoConfig, AutoModel

        known = {**self.config, "model_type": _KINDS[self.config["model_type"]], "apply_spec_augment": False}
        for name in ("auto_map", "architectures", *_OTHERWISE):
            known.pop(name, None)
        with torch.inference_mode(False):  # what is read first in a request is used in training too
            with torch.device("meta"):
                config = AutoConfig.for_model(**known)
                model = AutoModel.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
            state, weights = model.state_dict(), self.weights()
            wanted = {name: x for name, x in state.items() if not name.startswith(_OF_TRAINING)}
            check_state_dict(weights, wanted, self.source.model)
            check_finite(weights, source=self.source.model)
            rest = {name: torch.zeros(x.shape) for name, x in state.items() if name not in wanted}
            model.load_state_dict({name: x.float() for name, x in weights.items()} | rest, assign=True)
        return model.requires_grad_(False)

    def save(self, folder: Path) -> None:
        """Writes a folder that is this model and nothing else."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")
        save_file({name: x.contiguous() for name, x in self.weights().items()}, folder / "model.safetensors", {"format": "pt"})
