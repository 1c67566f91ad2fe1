"""codec_lm: a language model over the codes of a codec, all codebooks of a step at once (arXiv:2306.05284).

The embeddings of a step's codes are summed, and one head per codebook predicts the next step. The special id, one past
the codebook, fills the positions that a pattern leaves empty; as a prediction, which only codebook 0 has, it is the end
of the clip. `CodecLM` holds the weights, `forward` and the loss; `DecodingState` is a generation in progress:

    state, first = init_state(lm, branches, inputs, patterns)
    prefill(lm, state, first)                                  # prefix and known steps
    for step in range(first, steps):
        decode_step(lm, state, PositionRange(step, step + 1))  # samples state.buffer.sequence[:, :, step]
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
from cadenza.nn.patterns import Delay, Pattern, PatternSpec, stack_tables
from cadenza.nn.transformer import Transformer
from cadenza.nn.weight_quantization import QuantizedLinear, dequantized_if_unsupported, pack_linears
from cadenza.samplers.guidance import GuidanceMixer, batch_branches, nonzero_branches
from cadenza.samplers.tokens import DecodingBuffer, TokenSampling, uniform_noise

if TYPE_CHECKING:
    from cadenza.nn.kernels.cpu_decoder import QuantizedDecoder

BLOCK_STEPS = 16  # steps between two synchronisations with the host
NO_FRAME = 1 << 40  # frame number of a position that belongs to no frame


class CodecLMSpec(GeneratorSpec):
    """A transformer of `depth` blocks and `heads` heads; `mlp_ratio` is the feed-forward's width over `width`."""

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
    end_of_sequence: bool = True  # the model can predict the end of a clip
    attend_padding: bool = False  # attend to the padding of conditions, as some released models do
    cross_attention_pos_emb_scale: float = Field(default=0.0, allow_inf_nan=False)  # of sinusoids added to `cross`; 0: none
    max_frames: int = Field(default=1500, gt=0)  # context, in frames

    slots: ClassVar[frozenset[Slot]] = frozenset({"cross", "prepend", "add", "concat", "global"})
    alignments: ClassVar[frozenset[str]] = frozenset({"frames", "steps"})
    sampling: ClassVar = TokenSampling

    @property
    def attends_padding(self) -> bool:
        return self.attend_padding

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
            raise ValueError(f"width: {self.width} is too small for sinusoidal positions; use 4 or more")
        if self.end_of_sequence and not self.pattern.prefix_stable:
            raise ValueError(f"end_of_sequence: a clip in pattern '{self.pattern.type}' cannot end by itself; set it to false")
        return self

    def activation_bytes(self, frame_format: FrameFormat, load: BatchShape) -> dict[str, int]:
        steps, itemsize = len(self.pattern.pattern(frame_format.channels, load.frames)), load.dtype.itemsize
        positions, device = load.positions.get("prepend", 0) + steps, load.device.partition(":")[0]
        position_bytes, cross = self.width * itemsize, 2 * self.depth * load.rows * load.positions.get("cross", 0)
        widened = 0 if device != "cpu" or itemsize == 4 else 2 * load.rows * positions * self.width * 4  # one layer in float32
        if load.quantized and device == "cpu":  # int8 with one scale per head
            positions, position_bytes, widened = -(-positions // 64) * 64, self.width + 4 * self.heads, 0
        elif device == "cuda":
            positions = round_up_to_bucket(positions)
        has_additive = "add" in load.positions or self.positions == "sinusoidal"
        step_numbers = load.rows * steps * (self.width * has_additive + load.widths.get("concat", 0))
        return {
            "keys and values": 2 * self.depth * load.rows * positions * position_bytes,
            "conditions": (cross * self.width + step_numbers) * itemsize,
            "a step": widened + 8 * load.rows * frame_format.channels * frame_format.cardinality * 4,
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
        if self.end_of_sequence and (pattern.step_of_frame[1:, 0] < pattern.step_of_frame[0, 0]).any():
            raise ValueError("pattern: codebook 0 must come first in a frame where end_of_sequence is true")

    @classmethod
    def example(cls) -> tuple[GeneratorSpec, FrameFormat, dict[Slot, int]]:
        spec = cls(width=32, depth=2, heads=2, mlp_ratio=2, dropout=0.1, max_frames=64)
        return spec, FrameFormat("codes", 50.0, 3, 11), {"cross": 12, "prepend": 8, "add": 32, "concat": 5, "global": 6}

    def build(self, frame_format: FrameFormat, widths: Mapping[Slot, int]) -> "CodecLM":
        return CodecLM(self, frame_format, widths)


class CodecLM(Generator):
    """The weights: embeddings of `num_codebooks` codebooks, a causal transformer, one head per codebook."""

    graphs: GraphCache | None = None  # made by the first stream on a GPU
    int8_only: ClassVar[tuple[str, ...]] = (
        "head", "cross.kv", "adaln", *(f"input_projections.{slot}" for slot in ("prepend", "add", "concat"))
    )  # fmt: skip

    def __init__(self, spec: CodecLMSpec, frame_format: FrameFormat, widths: Mapping[Slot, int]) -> None:
        super().__init__()
        self.spec, self.frame_format = spec, frame_format
        self.num_codebooks, self.special_token_id = frame_format.channels, frame_format.cardinality
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
        # one table for all codebooks: codebook k begins at row k * (special_token_id + 1)
        self.embedding = nn.Embedding(self.num_codebooks * (self.special_token_id + 1), spec.width)
        self.head = nn.Linear(spec.width, self.num_codebooks * self.special_token_id + int(spec.end_of_sequence), bias=False)
        self.input_projections = nn.ModuleDict()
        for slot in ("prepend", "add"):
            if slot in widths:
                same = widths[slot] == spec.width
                self.input_projections[slot] = nn.Identity() if same else nn.Linear(widths[slot], spec.width, bias=False)
        if "concat" in widths:  # starts as the identity on the embedding plus a little of the concatenated vector
            self.input_projections["concat"] = concat = nn.Linear(spec.width + widths["concat"], spec.width, bias=False)
            nn.init.eye_(concat.weight)
            nn.init.normal_(concat.weight[:, spec.width :], std=0.02)  # a zero projection of a zero vector gets no gradient
        nn.init.normal_(self.embedding.weight, std=spec.width**-0.5)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(
        self,
        sequence: Int[Tensor, "b k s"],
        fused: FusedConditions,
        frame: Int[Tensor, "b k n"],
        rng: torch.Generator | None = None,
    ) -> Float[Tensor, "b s k v"]:
        """Return at each step the logits of the next; `frame` is the pattern's `frame_at_step`, with n >= s."""
        conditions = self.conditioning(fused, frame)
        x = self.causal_pass(self.embed_from_start(sequence, conditions), conditions, rng=rng)
        return self.split_codebooks(self.head(x[:, conditions.prefix_length :]))

    def losses(self, target: Codes | Latents, fused: FusedConditions, rng: torch.Generator) -> dict[str, Tensor]:
        """Return the mean cross-entropy of each codebook (`ce_0`, ...) and `loss`, their mean.

        The end of a clip is a target where `target.ended` is true. Raises RequestError for clips of an unsuitable length.
        """
        assert isinstance(target, Codes), "codec_lm is trained on codes"
        frames = target.ids.shape[-1]
        if frames > self.spec.max_frames:
            raise RequestError(f"clips of {frames} frames are longer than the model's context of {self.spec.max_frames}")
        device, lengths = target.ids.device, target.lengths[:, None, None]
        extra = int(self.spec.end_of_sequence)
        ended = torch.zeros_like(target.lengths, dtype=torch.bool) if target.ended is None else target.ended
        if self.spec.fixed_length:
            frames = self.spec.max_frames
            if bool((~ended & (target.lengths < frames)).any()):
                raise RequestError(
                    f"pattern '{self.spec.pattern.type}' depends on the length of a clip, so it is trained on clips of exactly "
                    f"{frames} frames (generator.max_frames), but got {int(target.lengths.min())}; cut clips to that length"
                )
        frame = self.pattern(frames + extra).frame_at_step.to(device).expand(len(target), -1, -1)
        inside = (frame >= 0) & (frame < lengths)
        ids = F.pad(target.ids, (0, 1 + frames - target.ids.shape[-1]))
        sequence = ids.gather(2, frame.where(inside, frames)).where(inside, self.special_token_id)
        before_crop = (frame >= lengths).any(1).cumsum(1) == 0
        counted = inside & (before_crop | ended[:, None])[:, None]
        if extra:
            counted[:, 0] |= (frame[:, 0] == lengths[:, 0]) & ended[:, None]
        if self.training and rng.device.type != device.type:
            rng = torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=rng)))
        logits = self(sequence[:, :, :-1], fused, frame, rng if self.training else None)
        counted = counted[:, :, 1:].transpose(1, 2)  # [b, s, k]
        labels = sequence[:, :, 1:].transpose(1, 2).where(counted, 0)
        values = F.cross_entropy(logits.flatten(0, 2).float(), labels.flatten(), reduction="none").view_as(labels) * counted
        means = values.sum((0, 1)) / counted.sum((0, 1)).clamp(min=1)
        return {"loss": means.mean(), **{f"ce_{codebook}": mean for codebook, mean in enumerate(means.detach())}}

    def pattern(self, frames: int) -> Pattern:
        """Return the pattern of a clip of `frames` frames."""
        return self.spec.pattern.pattern(self.num_codebooks, frames)

    def conditioning(self, fused: FusedConditions, frame: Int[Tensor, "b k s"]) -> ConditioningInputs:
        """Place the conditions at the steps of a sequence."""
        return ConditioningInputs.from_fused(
            fused,
            frame,
            transformer=self.transformer,
            inputs=self.input_projections,
            rotary=self.spec.positions == "rotary",
            attend_padding=self.spec.attend_padding,
            cross_positions=self.spec.cross_attention_pos_emb_scale,
        )

    def causal_pass(self, x: Float[Tensor, "b n d"], conditions: ConditioningInputs, **options: Any) -> Float[Tensor, "b n d"]:
        """Run the transformer over the first n positions at once; `options` are its `cache` and `rng`."""
        n = x.shape[1]
        mask = None if conditions.valid is None else prefix_causal_mask(conditions.valid[:, :n])
        return self.transformer(x, mask=mask, **conditions.slice(PositionRange(0, n)), **options)

    def embed_from_start(self, sequence: Int[Tensor, "b k s"], conditions: ConditioningInputs) -> Float[Tensor, "b n d"]:
        """Return the transformer's inputs for the prefix and the first s steps."""
        x = self.embed_steps(sequence, conditions, PositionRange(0, sequence.shape[2]))
        return x if conditions.prefix is None else torch.cat([conditions.prefix, x], 1)

    def embed_steps(
        self, sequence: Int[Tensor, "b k s"], conditions: ConditioningInputs, steps: PositionRange
    ) -> Float[Tensor, "b s d"]:
        """Sum the embeddings of the codebooks at `steps`, and apply the conditions of the slots concat and add."""
        offsets = torch.arange(self.num_codebooks, device=sequence.device)[:, None] * (self.special_token_id + 1)
        x = self.embedding(sequence + offsets).sum(1)  # [b, s, d]
        if conditions.concat is not None:
            x = self.input_projections["concat"](torch.cat([x, steps.gather(conditions.concat, 1).to(x.dtype)], -1))
        return x if conditions.additive is None else x + steps.gather(conditions.additive, 1)

    def split_codebooks(self, y: Float[Tensor, "*b h"]) -> Float[Tensor, "*b k v"]:
        """Split the head's output by codebook; with `end_of_sequence` the last id is -inf but for codebook 0."""
        codes = y[..., : self.num_codebooks * self.special_token_id].unflatten(-1, (self.num_codebooks, self.special_token_id))
        if not self.spec.end_of_sequence:
            return codes
        end = F.pad(y[..., -1:], (0, self.num_codebooks - 1), value=-torch.inf)
        return torch.cat([codes, end[..., None]], -1)

    def stream(self, branches: Sequence[GuidanceBranch], inputs: GenerationInputs) -> Iterator[Codes | Latents]:
        """Yield frames as soon as all their codes are sampled; an item ends where the model predicts its end.

        Raises RequestError unless the known frames of each item are its first ones.
        """
        if self.graphs is None and self.embedding.weight.is_cuda:
            self.graphs = GraphCache()
        patterns = [self.pattern(frames) for frames in inputs.frames.tolist()]
        branches = nonzero_branches(branches, plain=inputs.guidance_schedule is not None or inputs.rescale > 0)
        lm = pack_linears(dequantized_if_unsupported(self), len(patterns) * (1 if inputs.two_step_cfg else len(branches)))
        state, first = init_state(lm, branches, inputs, patterns)
        runner = None if self.graphs is None else self.graphs.acquire(state, lm)
        state = state if runner is None else runner.state
        complete = [pattern.complete_frames_after() for pattern in patterns]  # after each step
        step_of_frame = stack_tables([pattern.step_of_frame for pattern in patterns]).to(
            state.buffer.sequence.device
        )  # [b, k, f]
        sent, end = 0, state.buffer.sequence.shape[2]
        try:
            prefill(lm, state, first)
            for last in [*range(first + BLOCK_STEPS, end, BLOCK_STEPS), end]:
                decode_block(lm, state, first, last, runner)
                first, lengths = last, state.buffer.lengths.tolist()
                done = [table[min(last, len(table)) - 1] for table in complete]
                unfinished = [frames for frames, length in zip(done, lengths, strict=True) if frames < length]
                ready = min([*unfinished, max(lengths)])
                if ready > sent:
                    yield state.buffer.read_frames(step_of_frame[:, :, sent:ready], sent)
                    sent = ready
                if not unfinished:
                    break
        finally:
            state.close()
        if self.graphs is not None and runner is not None:
            self.graphs.release(runner)


@dataclass
class BranchGroup:
    """Guidance branches evaluated in one forward pass; nb = branches * b rows, the items of one branch together."""

    branches: int
    conditions: ConditioningInputs  # of all nb rows, at every position of prefix and steps
    cache: list[KVCache] | None  # keys and values [nb, h, n, d / h] of each layer; None with `decoder`
    decoder: "QuantizedDecoder | None" = None  # for int8 and int4 weights on a CPU; keeps its own 8-bit cache and threads


@dataclass
class DecodingState:
    """A generation in progress of b items. Everything that changes from step to step is in its tensors."""

    buffer: DecodingBuffer  # tokens [b, k, s], noise [b, k, s], lengths [b], sampling and guidance settings
    groups: list[BranchGroup]  # one group with all branches, or one per branch with `two_step_cfg`
    position: Int[Tensor, "1"]  # the next step, counted on the device when a CUDA graph replays `decode_step`

    def close(self) -> None:
        """Stop the threads of the decoders."""
        for group in self.groups:
            if group.decoder is not None:
                group.decoder.close()


@torch.inference_mode()
def init_state(
    lm: CodecLM, branches: list[GuidanceBranch], inputs: GenerationInputs, patterns: list[Pattern]
) -> tuple[DecodingState, int]:
    """Allocate the state of a generation, and return it with the first step that has an unknown code.

    Raises RequestError if the frames, seeds or known frames do not suit the model.
    """
    batch, device, spec = len(patterns), lm.embedding.weight.device, lm.spec
    frames = torch.tensor([pattern.frames for pattern in patterns])
    if int(frames.max()) > spec.max_frames or int(frames.min()) < 1:
        raise RequestError(f"frames must lie between 1 and {spec.max_frames}, got {frames.tolist()}")
    if spec.fixed_length and int(frames.min()) < spec.max_frames:
        raise RequestError(
            f"pattern '{spec.pattern.type}' depends on the length of a clip, so this model generates exactly "
            f"{spec.max_frames} frames, not {frames.tolist()}; generate that many and cut them"
        )
    if len(inputs.seeds) != batch:
        raise RequestError(f"{len(inputs.seeds)} seeds are given for {batch} items")
    frame = stack_tables([pattern.frame_at_step for pattern in patterns])  # [b, k, s]
    ids, prefix = torch.zeros(batch, lm.num_codebooks, 0, dtype=torch.long), torch.zeros_like(frames)
    if inputs.known_frames is not None:
        ids, prefix = validate_known_prefix(inputs.known_frames, frames, lm.frame_format)  # [b, k, f], [b]
    known, inside = (frame >= 0) & (frame < prefix[:, None, None]), frame < frames[:, None, None]
    sequence = F.pad(ids, (0, 1)).gather(2, frame.where(known, ids.shape[2])).where(known, lm.special_token_id)
    missing, steps = ((frame >= prefix[:, None, None]) & inside).any(1).any(0), frame.shape[2]  # [s]
    first = next((step for step in range(1, steps) if missing[step]), steps)
    noise = F.pad(uniform_noise(inputs.seeds, inputs.start_frame, int(frames.max()), lm.num_codebooks), (0, 1))  # [b, k, f + 1]
    eos_allowed = (frame > 0) & ~known & inputs.sampling.allow_eos
    eos_allowed[:, 1:] = False
    conditioned = frame.where(inside, -1).to(device)  # no conditions after an item's last frame
    strength = inputs.guidance_schedule
    if strength is not None:
        strength = strength.to(device).gather(1, latest_predicted_frame(conditioned, strength.shape[1]))
    buffer = DecodingBuffer(
        sequence=sequence.to(device),
        lengths=frames.to(device),
        frame=frame.where(frame >= 0, NO_FRAME).to(device),
        known=known.to(device),
        uniform=noise.gather(2, frame.where(frame >= 0, noise.shape[2]).clamp(max=noise.shape[2] - 1)).to(device),
        eos_forbidden=~eos_allowed.to(device) if spec.end_of_sequence else None,
        strength=strength,
        guidance=GuidanceMixer.of(branches, inputs.rescale),
        sampling=inputs.sampling,
        special=lm.special_token_id,
    )
    groups = []
    for part in [[branch] for branch in branches] if inputs.two_step_cfg else [branches]:
        conditions = lm.conditioning(batch_branches(part, batch), conditioned.repeat(len(part), 1, 1))
        rows, positions = len(part) * batch, conditions.prefix_length + steps
        cache = decoder = None
        if isinstance(lm.head, QuantizedLinear) and device.type == "cpu":
            from cadenza.nn.kernels.cpu_decoder import QuantizedDecoder

            decoder = QuantizedDecoder(lm.transformer, lm.head, conditions, sequences=rows, positions=positions)
        else:
            cache = lm.transformer.allocate_kv_cache(rows, round_up_to_bucket(positions) if lm.graphs else positions)
        groups.append(BranchGroup(len(part), conditions, cache, decoder))
    return DecodingState(buffer, groups, torch.tensor([first]).to(device)), first


@torch.inference_mode()
def prefill(lm: CodecLM, state: DecodingState, first: int) -> None:
    """Feed the prefix and the known steps before `first`, but not the last of these: `decode_step` feeds it."""
    for group in state.groups:
        sequence = state.buffer.sequence[:, :, : first - 1].repeat(group.branches, 1, 1)  # [nb, k, first - 1]
        if group.conditions.prefix_length + sequence.shape[2] == 0:
            continue
        x = lm.embed_from_start(sequence, group.conditions)  # [nb, n, d]
        if group.decoder is None:
            lm.causal_pass(x, group.conditions, cache=group.cache)
        else:
            group.decoder.prefill(x, 0)


def decode_step(lm: CodecLM, state: DecodingState, step: PositionRange) -> None:
    """Feed the codes before `step` and sample those of `step` into the buffer, without host synchronisation."""
    state.buffer.sample_step(step_logits(lm, state, step), step)  # [nb, k, v] -> [b, k]


def step_logits(lm: CodecLM, state: DecodingState, step: PositionRange) -> Float[Tensor, "nb k v"]:
    """Feed the codes before `step` to all branches and return the logits of `step`."""
    before, logits = step.shifted(-1), []
    previous = before.gather(state.buffer.sequence, 2)  # [b, k, 1]
    for group in state.groups:
        x = lm.embed_steps(previous.repeat(group.branches, 1, 1), group.conditions, before)  # [nb, 1, d]
        position = before.shifted(group.conditions.prefix_length).padded_to_bucket()
        if group.decoder is None:
            mask = decode_step_mask(group.conditions.valid, position, x.dtype)  # [nb, 1, 1, n]
            x = lm.transformer(x, mask=mask, cache=group.cache, **group.conditions.slice(position))
            logits.append(lm.split_codebooks(lm.head(x[:, -1])))
        else:
            logits.append(lm.split_codebooks(group.decoder.step(x, position.end - 1)))
    return torch.cat(logits)


@torch.inference_mode()
def decode_block(
    lm: CodecLM, state: DecodingState, first: int, last: int, runner: GraphRunner[DecodingState] | None = None
) -> None:
    """Decode the steps from `first` up to `last`; with `runner` by one captured step that is replayed."""
    if runner is None:
        with single_torch_thread() if any(group.decoder is not None for group in state.groups) else nullcontext():
            for step in range(first, last):
                decode_step(lm, state, PositionRange(step, step + 1))
        return
    state.position.fill_(first)

    def decode_next() -> None:
        decode_step(lm, state, PositionRange(state.position, last))
        state.position.add_(1)

    buckets = tuple(round_up_to_bucket(group.conditions.prefix_length + last - 1) for group in state.groups)
    runner.run(decode_next, last - first, key=buckets)
