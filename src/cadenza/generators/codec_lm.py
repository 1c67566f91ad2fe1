"""codec_lm: a language model over the codes of a codec, all codebooks of a step at once (arXiv:2306.05284).

The embeddings of a step's codes are summed, a causal transformer reads them, one head a codebook predicts the
next step. The special id, one past the codebook, fills what a pattern leaves empty; as a prediction, which only
codebook 0 has, it is the end of the clip.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.core.errors import RequestError
from cadenza.core.types import Codes, FrameFormat, FusedConditions, GuidanceBranch, Latents, Slot
from cadenza.generators.base import BatchShape, GenerationInputs, Generator, GeneratorSpec, validate_known_prefix
from cadenza.nn.attention import decode_step_mask, prefix_causal_mask
from cadenza.nn.conditioning import ConditioningInputs, latest_predicted_frame
from cadenza.nn.cuda_graphs import GraphCache, GraphRunner
from cadenza.nn.kernels import single_torch_thread
from cadenza.nn.kv_cache import KVCache, PositionRange, round_up_to_bucket
from cadenza.nn.patterns import Delay, Pattern, PatternSpec, pad_frame_tables, pad_step_tables
from cadenza.nn.transformer import Transformer
from cadenza.nn.weight_quantization import QuantizedLinear, dequantized_if_unsupported, pack_linears
from cadenza.samplers.guidance import GuidanceMixer, batch_branches, nonzero_branches
from cadenza.samplers.tokens import DecodingBuffer, TokenSampling, uniform_noise

if TYPE_CHECKING:
    from cadenza.nn.kernels.cpu_decoder import QuantizedDecoder

BLOCK = 16  # steps between two looks at the host
NOWHERE = 1 << 40  # stands for no frame where a frame's number is compared


class CodecLMSpec(GeneratorSpec):
    """A transformer of `depth` blocks; `mlp` is the feed-forward's width over the model's."""

    type: Literal["codec_lm"] = "codec_lm"
    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    heads: int = Field(gt=0)
    mlp_ratio: float = Field(default=4.0, gt=0)
    pattern: PatternSpec = Delay()
    positions: Literal["rotary", "sinusoidal"] = "rotary"
    bias: bool = False  # in attention and feed-forward
    dropout: float = Field(default=0.0, ge=0, lt=1)
    norm_eps: float = Field(default=1e-5, gt=0)
    end_of_sequence: bool = True  # whether the model may end a clip by itself
    attend_padding: bool = False  # whether padding of conditions takes part, as in some released models
    cross_attention_pos_emb_scale: float = Field(
        default=0.0, allow_inf_nan=False
    )  # of the sinusoids added to what `cross` holds; 0: none
    max_frames: int = Field(default=1500, gt=0)  # frames in one piece

    slots: ClassVar[frozenset[Slot]] = frozenset({"cross", "prepend", "add", "concat", "global"})
    alignments: ClassVar[frozenset[str]] = frozenset({"frames", "steps"})
    sampling: ClassVar = TokenSampling

    @property
    def fixed_length(self) -> bool:
        return not self.pattern.prefix_stable

    @model_validator(mode="after")
    def _consistent(self) -> "CodecLMSpec":
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} heads do not divide the width {self.width}")
        if self.positions == "rotary" and self.width // self.heads % 2:
            raise ValueError(f"heads: {self.heads} heads do not divide the width {self.width} into heads of even width")
        if self.width < 4 and self.positions == "sinusoidal":
            raise ValueError(f"width: {self.width} holds no sinusoids; give 4 or more")
        if self.end_of_sequence and not self.pattern.prefix_stable:
            raise ValueError(f"end_of_sequence: a clip in pattern '{self.pattern.type}' cannot end by itself; set it to false")
        return self

    def activation_bytes(self, frame_format: FrameFormat, load: BatchShape) -> dict[str, int]:
        steps, size, tokens = len(self.pattern.pattern(frame_format.channels, load.frames)), load.dtype.itemsize, load.positions
        positions, device = tokens.get("prepend", 0) + steps, load.device.partition(":")[0]
        each, read = self.width * size, 2 * self.depth * load.rows * tokens.get("cross", 0)  # keys and values are remembered
        wide = 0 if device != "cpu" or size == 4 else 2 * load.rows * positions * self.width * 4  # a layer's, to be attended to
        if load.quantized and device == "cpu":  # in 8 bits, with a scale for each head
            positions, each, wide = -(-positions // 64) * 64, self.width + 4 * self.heads, 0
        elif device == "cuda":
            positions = round_up_to_bucket(positions)
        added = "add" in tokens or self.positions == "sinusoidal"
        along = load.rows * steps * (self.width * added + load.widths.get("concat", 0))
        return {
            "keys and values": 2 * self.depth * load.rows * positions * each,
            "conditions": (read * self.width + along) * size,
            "a step": wide + 8 * load.rows * frame_format.channels * frame_format.cardinality * 4,
        }

    def validate_inputs(self, frame_format: FrameFormat, widths: Mapping[Slot, int]) -> None:
        if frame_format.kind != "codes":
            raise ValueError(f"codec_lm writes codes, but the codec gives {frame_format.kind}")
        if extra := sorted(set(widths) - self.slots):
            raise ValueError(f"codec_lm has no slot '{extra[0]}'; it has: {', '.join(sorted(self.slots))}")
        try:
            pattern = self.pattern.pattern(frame_format.channels, 1)
        except ValueError as error:
            raise ValueError(f"pattern.{error}") from None
        if not pattern.starts_empty:
            raise ValueError("pattern.empty_initial: a language model needs an empty step to start from; use 0 or more")
        if self.end_of_sequence and pattern.first_step(0) != int(pattern.step_of_frame[0, 0]):
            raise ValueError("pattern: codebook 0 must come first in a frame where end_of_sequence is true")

    @classmethod
    def example(cls) -> tuple[GeneratorSpec, FrameFormat, dict[Slot, int]]:
        spec = cls(width=32, depth=2, heads=2, mlp_ratio=2, dropout=0.1, max_frames=64)
        return spec, FrameFormat("codes", 50.0, 3, 11), {"cross": 12, "prepend": 8, "add": 32, "concat": 5, "global": 6}

    def build(self, frame_format: FrameFormat, widths: Mapping[Slot, int]) -> "CodecLM":
        return CodecLM(self, frame_format, widths)


@dataclass
class _Group:
    """Branches that are evaluated together, one after the other in the batch."""

    branches: int
    setting: ConditioningInputs
    cache: KVCache | None
    decoding: "QuantizedDecoder | None" = None  # which remembers what the cache does elsewhere


@dataclass
class _State:
    """A batch being written, and what is remembered of it; `step` is the next one where the device keeps count."""

    writing: DecodingBuffer
    groups: list[_Group]
    step: Int[Tensor, "1"]

    def close(self) -> None:
        """Ends what runs for it."""
        for group in self.groups:
            if group.decoding is not None:
                group.decoding.close()


class CodecLM(Generator):
    """Embeddings of K codebooks summed, a causal transformer, K heads."""

    int8_only: ClassVar[tuple[str, ...]] = (
        "head",
        "cross.kv",
        "adaln",
        *(f"input_projections.{slot}" for slot in ("prepend", "add", "concat")),
    )

    def __init__(self, spec: CodecLMSpec, frame_format: FrameFormat, widths: Mapping[Slot, int]) -> None:
        super().__init__()
        self.spec, self.frame_format = spec, frame_format
        self.num_codebooks, self.special_token_id = frame_format.channels, frame_format.cardinality
        self.graphs = GraphCache()
        self.transformer = Transformer(
            spec.width,
            spec.depth,
            heads=spec.heads,
            hidden=round(spec.width * spec.mlp_ratio),
            source=widths.get("cross"),
            style=widths.get("global"),
            bias=spec.bias,
            dropout=spec.dropout,
            eps=spec.norm_eps,
        )
        self.embedding = nn.Embedding(
            self.num_codebooks * (self.special_token_id + 1), spec.width
        )  # codebook k begins at k * (special + 1)
        self.head = nn.Linear(spec.width, self.num_codebooks * self.special_token_id + int(spec.end_of_sequence), bias=False)
        self.input_projections = nn.ModuleDict(
            {
                slot: nn.Identity() if widths[slot] == spec.width else nn.Linear(widths[slot], spec.width, bias=False)
                for slot in ("prepend", "add")
                if slot in widths
            }
        )
        if "concat" in widths:  # at first a frame's embedding with a little of what stands beside it
            self.input_projections["concat"] = beside = nn.Linear(spec.width + widths["concat"], spec.width, bias=False)
            nn.init.eye_(beside.weight)
            nn.init.normal_(beside.weight[:, spec.width :], std=0.02)  # zeros learn nothing of a part that begins at zero
        nn.init.normal_(self.embedding.weight, std=spec.width**-0.5)
        nn.init.normal_(self.head.weight, std=0.02)

    # training

    def forward(
        self,
        sequence: Int[Tensor, "b k s"],
        fused: FusedConditions,
        frame: Int[Tensor, "b k n"],
        rng: torch.Generator | None = None,
    ) -> Float[Tensor, "b s k v"]:
        """At each step the logits of the next; `frame` is the pattern's, of these steps or of more."""
        setting = self._setting(fused, frame)
        return self._logits(self._run(sequence, setting, rng=rng)[:, setting.prefix_length :])

    @torch.inference_mode()
    def iter_logits(
        self, sequence: Int[Tensor, "b k s"], fused: FusedConditions, frame: Int[Tensor, "b k n"]
    ) -> Iterator[Tensor]:
        """The logits [b k v] of `forward` step after step, as clips are made; each holds until the next."""
        lm = pack_linears(dequantized_if_unsupported(self), len(sequence))
        group = lm._group(fused, frame, len(sequence))
        try:
            lm._feed(sequence[:, :, :0], group)
            for step in range(sequence.shape[2]):
                yield lm._next(sequence[:, :, step : step + 1], group, PositionRange(step + 1, step + 2))
        finally:
            if group.decoding is not None:
                group.decoding.close()

    def losses(self, target: Codes | Latents, fused: FusedConditions, rng: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropy of each codebook; the end of a clip is a target where `target.ended` says so."""
        assert isinstance(target, Codes), "codec_lm learns from codes"
        frames = target.ids.shape[-1]
        if frames > self.spec.max_frames:
            raise RequestError(f"clips of {frames} frames are longer than the model's context of {self.spec.max_frames}")
        device, lengths = target.ids.device, target.lengths[:, None, None]
        extra = int(self.spec.end_of_sequence)
        ended = torch.zeros_like(target.lengths, dtype=torch.bool) if target.ended is None else target.ended
        if self.spec.fixed_length:
            frames = self._whole(target, ended)
        frame = self._pattern(frames + extra).frame_at_step.to(device).expand(len(target), -1, -1)
        inside = (frame >= 0) & (frame < lengths)
        ids = F.pad(target.ids, (0, 1 + frames - target.ids.shape[-1]))
        sequence = ids.gather(2, frame.where(inside, frames)).where(inside, self.special_token_id)
        before_crop = (frame >= lengths).any(1).cumsum(1) == 0
        counted = inside & (before_crop | ended[:, None])[:, None]
        if extra:
            counted[:, 0] |= (frame[:, 0] == lengths[:, 0]) & ended[:, None]
        logits = self(sequence[:, :, :-1], fused, frame, _on(rng, device) if self.training else None)
        return _cross_entropies(logits, sequence[:, :, 1:].transpose(1, 2), counted[:, :, 1:].transpose(1, 2))

    def _whole(self, target: Codes, ended: Tensor) -> int:
        """The frames of every clip; raises RequestError for one that is shorter though its piece goes on."""
        if bool((~ended & (target.lengths < self.spec.max_frames)).any()):
            shortest, name = int(target.lengths.min()), self.spec.pattern.type
            raise RequestError(
                f"pattern '{name}' places codes by the length of the clip, so it learns from clips of exactly "
                f"{self.spec.max_frames} frames (generator.max_frames), but got {shortest}; cut clips to that length"
            )
        return self.spec.max_frames

    # generation

    def stream(self, branches: Sequence[GuidanceBranch], plan: GenerationInputs) -> Iterator[Codes | Latents]:
        """Known frames must come first in each item; an item's frames end where the model ends it."""
        wanted = plan.frames.tolist()
        patterns = [self._pattern(frames) for frames in wanted]
        branches = nonzero_branches(branches, plain=plan.guidance_schedule is not None or plan.rescale > 0)
        lm = pack_linears(dequantized_if_unsupported(self), len(wanted) * (1 if plan.two_step_cfg else len(branches)))
        first, state = lm._begin(branches, plan, patterns)
        recorded = self.graphs.acquire(state, lm)
        state = state if recorded is None else recorded.state
        try:
            yield from lm._written(state, recorded, patterns, first)
        finally:
            state.close()
        if recorded is not None:
            self.graphs.release(recorded)

    def _written(
        self, state: _State, recorded: GraphRunner[_State] | None, patterns: list[Pattern], first: int
    ) -> Iterator[Codes]:
        """Frames as soon as all their codes are there, from a batch of which the step `first` is the next."""
        whole = [pattern.complete_frames_after() for pattern in patterns]
        steps, end = pad_step_tables(patterns).to(state.writing.sequence.device), state.writing.sequence.shape[2]
        self._prefill(state, first)
        sent, last = 0, first
        while True:
            before, last = last, min(last + BLOCK, end)
            if recorded is None:
                self._advance(state, before, last)
            else:
                self._replay(recorded, before, last)
            ends = state.writing.lengths.tolist()
            done = [table[min(last, len(table)) - 1] for table in whole]
            open_ = [frames for frames, end in zip(done, ends, strict=True) if frames < end]
            ready = min([*open_, max(ends)])
            if ready > sent:
                yield state.writing.read_frames(steps[:, :, sent:ready], sent)
                sent = ready
            if not open_:
                return

    @torch.inference_mode()
    def _begin(self, branches: list[GuidanceBranch], plan: GenerationInputs, patterns: list[Pattern]) -> tuple[int, _State]:
        """The first step with a code that is not known, and the state before it."""
        batch, device = len(patterns), self.embedding.weight.device
        wanted = torch.tensor([pattern.frames for pattern in patterns])
        if int(wanted.max()) > self.spec.max_frames or int(wanted.min()) < 1:
            raise RequestError(f"frames must lie between 1 and {self.spec.max_frames}, got {wanted.tolist()}")
        if self.spec.fixed_length and int(wanted.min()) < self.spec.max_frames:
            raise RequestError(
                f"pattern '{self.spec.pattern.type}' places codes by the length of the clip, so this model makes exactly "
                f"{self.spec.max_frames} frames, not {wanted.tolist()}; make that many and cut them"
            )
        if len(plan.seeds) != batch:
            raise RequestError(f"{len(plan.seeds)} seeds are given for {batch} items")
        frame = pad_frame_tables(patterns)
        ids, prefix = validate_known_prefix(plan, self.frame_format)
        known = (frame >= 0) & (frame < prefix[:, None, None])
        sequence = F.pad(ids, (0, 1)).gather(2, frame.where(known, ids.shape[2])).where(known, self.special_token_id)
        missing = ((frame >= prefix[:, None, None]) & (frame < wanted[:, None, None])).any(1).any(0)
        steps = frame.shape[2]
        first = next((step for step in range(1, steps) if missing[step]), steps)
        draws = F.pad(uniform_noise(plan.seeds, plan.start_frame, int(wanted.max()), self.num_codebooks), (0, 1))
        may_end = (frame > 0) & ~known & plan.sampling.allow_eos
        may_end[:, 1:] = False
        together = [[branch] for branch in branches] if plan.two_step_cfg else [branches]
        there = frame.where(frame < wanted[:, None, None], -1).to(device)  # no condition of frames that are not asked for
        writing = DecodingBuffer(
            sequence=sequence.to(device),
            lengths=wanted.to(device),
            frame=frame.where(frame >= 0, NOWHERE).to(device),
            known=known.to(device),
            uniform=draws.gather(2, frame.where(frame >= 0, draws.shape[2]).clamp(max=draws.shape[2] - 1)).to(device),
            eos_forbidden=~may_end.to(device) if self.spec.end_of_sequence else None,
            strength=None
            if plan.guidance_schedule is None
            else plan.guidance_schedule.to(device).gather(1, latest_predicted_frame(there, plan.guidance_schedule.shape[1])),
            guidance=GuidanceMixer.of(branches, plan.rescale),
            sampling=plan.sampling,
            special=self.special_token_id,
        )
        groups = [self._group(batch_branches(part, batch), there.repeat(len(part), 1, 1), batch) for part in together]
        return first, _State(writing, groups, torch.tensor([first]).to(device))

    def _group(self, fused: FusedConditions, frame: Int[Tensor, "nb k s"], batch: int) -> _Group:
        setting = self._setting(fused, frame)
        branches, positions = len(frame) // batch, setting.prefix_length + frame.shape[2]
        if isinstance(self.head, QuantizedLinear) and frame.device.type == "cpu":
            return _Group(branches, setting, None, self._decoding(setting, (len(frame), positions)))
        cache = self.transformer.allocate_kv_cache(
            len(frame), round_up_to_bucket(positions) if self.graphs.is_supported(self) else positions
        )
        return _Group(branches, setting, cache)

    def _decoding(self, setting: ConditioningInputs, shape: tuple[int, int]) -> "QuantizedDecoder":
        from cadenza.nn.kernels.cpu_decoder import QuantizedDecoder

        return QuantizedDecoder(
            self.transformer,
            self.head,
            shape=shape,
            valid=setting.valid,
            rotation=setting.rotation,
            source=setting.cross_kv,
            styles=setting.adaln,
        )

    @torch.inference_mode()
    def _prefill(self, state: _State, first: int) -> None:
        """Feeds the prefix and the known steps but the last, which the first block feeds."""
        for group in state.groups:
            self._feed(state.writing.sequence[:, :, : first - 1].repeat(group.branches, 1, 1), group)

    def _feed(self, sequence: Int[Tensor, "nb k s"], group: _Group) -> None:
        """Feeds the prefix and the steps of `sequence`."""
        if group.setting.prefix_length + sequence.shape[2] == 0:
            return
        if group.decoding is None:
            self._run(sequence, group.setting, cache=group.cache)
        else:
            group.decoding.prefill(self._inputs(sequence, group.setting), 0)

    @torch.inference_mode()
    def _advance(self, state: _State, first: int, last: int) -> None:
        """Writes the steps from `first` up to `last`; nothing in here may wait for the device."""
        walked = any(group.decoding is not None for group in state.groups)
        with single_torch_thread() if walked else nullcontext():
            for step in range(first, last):
                self._step(state, PositionRange(step, step + 1))

    @torch.inference_mode()
    def _replay(self, recorded: GraphRunner[_State], first: int, last: int) -> None:
        """The same by one step that is recorded, and replayed wherever the device's own count stands."""
        state = recorded.state
        state.step.fill_(first)
        reads = tuple(round_up_to_bucket(group.setting.prefix_length + last - 1) for group in state.groups)
        recorded.run(lambda: self._counted(state, last), last - first, key=reads)

    def _counted(self, state: _State, last: int) -> None:
        self._step(state, PositionRange(state.step, last))
        state.step.add_(1)

    def _step(self, state: _State, step: PositionRange) -> None:
        """Writes one step."""
        column = step.shifted(-1).gather(state.writing.sequence, 2)
        each = [self._next(column.repeat(group.branches, 1, 1), group, step) for group in state.groups]
        state.writing.sample_step(torch.cat(each), step)

    def _next(self, column: Int[Tensor, "nb k 1"], group: _Group, step: PositionRange) -> Float[Tensor, "nb k v"]:
        """The logits of `step`, whose column before it is read."""
        setting, before = group.setting, step.shifted(-1)
        x, span = self._read(column, setting, before), before.shifted(setting.prefix_length).padded_to_bucket()
        if group.decoding is not None:
            return self._split(group.decoding.step(x, span.end - 1))
        mask = decode_step_mask(setting.valid, span, x.dtype)
        x = self.transformer(x, mask=mask, cache=group.cache, **setting.slice(span))
        return self._logits(x[:, -1])

    # both

    def _pattern(self, frames: int) -> Pattern:
        return self.spec.pattern.pattern(self.num_codebooks, frames)

    def _setting(self, fused: FusedConditions, frame: Int[Tensor, "b k s"]) -> ConditioningInputs:
        spec = self.spec
        return ConditioningInputs.from_fused(
            fused,
            frame,
            transformer=self.transformer,
            inputs=self.input_projections,
            rotary=spec.positions == "rotary",
            attend_padding=spec.attend_padding,
            cross_positions=spec.cross_attention_pos_emb_scale,
        )

    def _run(
        self,
        sequence: Int[Tensor, "b k s"],
        setting: ConditioningInputs,
        *,
        cache: KVCache | None = None,
        rng: torch.Generator | None = None,
    ) -> Float[Tensor, "b n d"]:
        """What the transformer makes of the prefix and the first steps, read at once."""
        x = self._inputs(sequence, setting)
        n = x.shape[1]
        mask = None if setting.valid is None else prefix_causal_mask(setting.valid[:, :n])
        return self.transformer(x, mask=mask, cache=cache, rng=rng, **setting.slice(PositionRange(0, n)))

    def _inputs(self, sequence: Int[Tensor, "b k s"], setting: ConditioningInputs) -> Float[Tensor, "b n d"]:
        """The prefix and the first steps, as the transformer reads them."""
        x = self._read(sequence, setting, PositionRange(0, sequence.shape[2]))
        return x if setting.prefix is None else torch.cat([setting.prefix, x], 1)

    def _read(
        self, sequence: Int[Tensor, "b k s"], setting: ConditioningInputs, steps: PositionRange
    ) -> Float[Tensor, "b s d"]:
        """The summed embeddings of some steps, with what conditions and positions add."""
        offsets = torch.arange(self.num_codebooks, device=sequence.device)[:, None] * (self.special_token_id + 1)
        x = self.embedding(sequence + offsets).sum(1)
        if setting.concat is not None:
            x = self.input_projections["concat"](torch.cat([x, steps.gather(setting.concat, 1).to(x.dtype)], -1))
        return x if setting.additive is None else x + steps.gather(setting.additive, 1)

    def _logits(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k v"]:
        return self._split(self.head(x))

    def _split(self, y: Float[Tensor, "*b h"]) -> Float[Tensor, "*b k v"]:
        """Each codebook's part of what the head says."""
        codes = y[..., : self.num_codebooks * self.special_token_id].unflatten(-1, (self.num_codebooks, self.special_token_id))
        if not self.spec.end_of_sequence:
            return codes
        end = F.pad(y[..., -1:], (0, self.num_codebooks - 1), value=-torch.inf)
        return torch.cat([codes, end[..., None]], -1)


def _cross_entropies(logits: Tensor, target: Tensor, counted: Tensor) -> dict[str, Tensor]:
    """The mean over the counted codes of each codebook (`ce_0`, ...), and `loss`, the mean of those."""
    wanted = target.where(counted, 0)
    each = F.cross_entropy(logits.flatten(0, 2).float(), wanted.flatten(), reduction="none").view_as(wanted) * counted
    means = each.sum((0, 1)) / counted.sum((0, 1)).clamp(min=1)
    return {"loss": means.mean(), **{f"ce_{row}": mean for row, mean in enumerate(means.detach())}}


def _on(rng: torch.Generator, device: Any) -> torch.Generator:
    """`rng`, or a generator on `device` that begins where `rng` stands."""
    if torch.device(rng.device).type == torch.device(device).type:
        return rng
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=rng)))
