"""The training step in the open: `fit` is a generator of StepReports. No trainer class, no callbacks.

    state = TrainState.fresh(model, optim, total_steps=plan.num_steps)
    for report in fit(state, plan, SimPO(beta=2.0, gamma_beta_ratio=0.5)):
        ...                       # print it, report it to Ray, save_checkpoint(...), or break

Ray, the command line and the tests are consumers of this one iterator. Inside a torch.distributed process group that
somebody else made, every rank runs the same loop on its share of each step's micro-batches; gradients are summed, and
with `shard_model` weights, gradients and moments are divided too.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simpo.activations import keep_less
from simpo.config import OptimConfig
from simpo.errors import ConfigError, NonFiniteStep
from simpo.methods import Method
from simpo.objectives import Loss, loss_and_sum_gradients, objective_of
from simpo.optim import adamw, learning_rate
from simpo.packing import MicroBatch, PackedPlan
from simpo.reference import Reference
from simpo.scores import head_sums, head_with_gradient, hidden_rows, scores_of, softcap_of
from simpo.sharding import is_sharded, master_of, own_part, whole, zero_gradient
from simpo.workers import all_sum, clip_gradients, rank_and_size, sum_over_workers


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step did. Means run over the pairs of the global batch."""

    step: int
    """Steps done, counting from 1."""
    loss: float
    accuracy: float
    """Share of pairs with chosen reward > rejected reward, strict, without the margin gamma."""
    margin: float
    """Mean of chosen minus rejected reward, without gamma."""
    chosen_logp: float
    """Mean over pairs of a_w, nats per token."""
    rejected_logp: float
    """Mean over pairs of a_l, nats per token."""
    grad_norm: float
    """Global norm before clipping."""
    learning_rate: float
    tokens: int
    """Unique tokens that this worker computed."""
    seconds: float
    """Wall time of the step on this worker."""

    def metrics(self) -> dict[str, float]:
        """Every field as a plain number, for a table or a journal."""
        return {key: float(value) for key, value in dataclasses.asdict(self).items()}


@dataclass
class TrainState:
    """All that a run needs to go on: the model, float32 weights and optimiser moments, the step."""

    model: Any
    weights: list[nn.Parameter]
    """Float32 weights that the optimiser moves: the model's own, masters of a bfloat16 model, or shares of either."""
    optimizer: torch.optim.AdamW
    optim: OptimConfig
    total_steps: int
    step: int = 0
    """Steps done."""

    @classmethod
    def fresh(cls, model: Any, optim: OptimConfig, total_steps: int) -> "TrainState":
        """A run that has not begun. Weights in bfloat16 get float32 masters; frozen weights are left alone.

        The model's modules keep less for their backward from then on.
        """
        keep_less(model)
        own = [p for p in model.parameters() if p.requires_grad]
        weights = [master_of(model, parameter) for parameter in own]
        return cls(model, weights, adamw(weights, optim), optim, total_steps)

    def named_weights(self) -> dict[str, nn.Parameter]:
        """The float32 weights, or this worker's shares of them, under the model's names."""
        names = (name for name, parameter in self.model.named_parameters() if parameter.requires_grad)
        return dict(zip(names, self.weights, strict=True))

    def publish(self) -> None:
        """Copy the float32 masters into the model's own weights where these are others (together, where divided)."""
        for parameter, weight in zip(self.trained(), self.weights, strict=True):
            if parameter is not weight:
                parameter.data.copy_(whole(weight.data))

    def trained(self) -> list[nn.Parameter]:
        """The model's parameters that `weights` are the masters of, in the same order."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


def fit(
    state: TrainState,
    plan: PackedPlan,
    method: Method,
    *,
    reference: Reference | None = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[StepReport]:
    """Run from `state.step` to `state.total_steps`, one StepReport an optimiser step; `state` is moved in place.

    `stop` is asked before each step. Raises ConfigError for a plan or reference that does not fit, NonFiniteStep before
    weights would move on a loss or gradient that is not finite.
    """
    objective = objective_of(method)
    if objective.needs_reference and reference is None:
        raise ConfigError(f"{method.name} needs one: make it with reference_of()", "reference")
    if objective.needs_kl_batch and (reference is None or reference.mismatched_SB2 is None):
        raise ConfigError(f"{method.name} needs one with mismatched pairs: reference_of(mismatched=True)", "reference")
    if state.total_steps > plan.num_steps:
        raise ConfigError(f"is {state.total_steps}, the plan covers only {plan.num_steps}: make a longer plan", "steps")
    rank, world_size = rank_and_size()
    while state.step < state.total_steps and not (stop is not None and stop()):
        started = time.perf_counter()
        batches = [batch.to(state.model.device) for batch in plan.step(state.step, rank=rank, world_size=world_size)]
        sums = torch.zeros(len(_MEANS), dtype=torch.float64, device=state.model.device)
        step = StepContext(
            method=method,
            global_pairs=plan.batch_pairs,
            mean_chosen_len=plan.chosen_tokens(state.step) / plan.batch_pairs,
            reference=reference if objective.needs_reference else None,
            kl=_kl_estimate(state, plan, reference, rank, world_size) if objective.needs_kl_batch else None,
        )
        for parameter in (*state.weights, *state.model.parameters()):
            parameter.grad = None
        for batch in batches:
            loss, sums_2B = accumulate(state, batch, step)
            sums += _batch_sums(loss, sums_2B, batch)
        if is_sharded(state.model) and len(batches) < plan.most_batches(state.step, world_size):
            _keep_company(state, plan.smallest_batch(state.step).to(state.model.device))
        if world_size > 1:
            sum_over_workers(state.weights, sums)
        means = dict(zip(_MEANS, (sums / plan.batch_pairs).tolist(), strict=True))
        rate = learning_rate(state.optim, state.step, state.total_steps)
        grad_norm = _move(state, means["loss"], rate)
        state.step += 1
        yield StepReport(
            step=state.step,
            grad_norm=grad_norm,
            learning_rate=rate,
            tokens=sum(batch.num_tokens for batch in batches),
            seconds=time.perf_counter() - started,
            **means,
        )


_MEANS = ("loss", "accuracy", "margin", "chosen_logp", "rejected_logp")


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """What a micro-batch must know of the step it belongs to."""

    method: Method
    global_pairs: int
    """Pairs of the step over all micro-batches and workers: the loss is their mean."""
    mean_chosen_len: float
    """Chosen tokens a pair over the same."""
    reference: Reference | None = None
    kl: float | None = None


def accumulate(state: TrainState, batch: MicroBatch, step: StepContext) -> tuple[Loss, Tensor]:
    """Forward and backward of one micro-batch: its share of the gradient of the mean over the global batch.

    Returns the loss of its pairs and the summed log-probabilities of its responses, shape 2B.
    """
    model = state.model
    head = model.get_output_embeddings().weight
    grad_head_Vh = _gradient_of(state, head)
    embedding = _Embedding(state, batch)
    hidden_Sh = hidden_rows(model, batch, embedding.rows_1Th)
    reference_2B = None if step.reference is None else step.reference.sums_of(batch.pair_ids).to(hidden_Sh.device)
    losses: list[Loss] = []

    def coefficients(sums_2b: Tensor, pairs: Sequence[int]) -> Tensor:
        part = slice(2 * pairs[0], 2 * pairs[-1] + 2)
        scores = scores_of(
            sums_2b,
            batch.lengths_2B[part],
            mean_chosen_len=step.mean_chosen_len,
            reference_2B=None if reference_2B is None else reference_2B[part],
            kl=step.kl,
        )
        loss, chosen_B, rejected_B = loss_and_sum_gradients(scores, step.method)
        losses.append(loss)
        return torch.stack((chosen_B, rejected_B), dim=1).reshape(-1) / step.global_pairs

    with torch.no_grad():
        sums_2B, grad_Sh = head_with_gradient(
            hidden_Sh.detach(), head, batch, coefficients, grad_head_Vh, softcap=softcap_of(model)
        )
    hidden_Sh.backward(grad_Sh)  # type: ignore[no-untyped-call]
    embedding.collect()
    _collect(state)
    merged = Loss(*(torch.cat(parts) for parts in zip(*map(_fields, losses), strict=True)))
    return merged, sums_2B


@torch.no_grad()
def _kl_estimate(
    state: TrainState, plan: PackedPlan, reference: Reference | None, rank: int, world_size: int
) -> float:
    """z of KTO: max(0, mean of S - R over the mismatched responses of the whole step)."""
    assert reference is not None and reference.mismatched_SB2 is not None  # checked by fit()
    store = plan.mismatched(state.step)
    head = state.model.get_output_embeddings().weight
    total = torch.zeros(1, dtype=torch.float64)
    batches = store.evaluation_batches(plan.token_budget)
    for batch in batches[rank::world_size]:
        batch = batch.to(state.model.device)
        sums_2B = head_sums(hidden_rows(state.model, batch), head, batch, softcap=softcap_of(state.model)).cpu()
        reference_2B = reference.mismatched_SB2[state.step][list(batch.pair_ids)].reshape(-1)
        total += (sums_2B - reference_2B).double().sum()
    if is_sharded(state.model) and rank >= len(batches) % world_size > 0:
        hidden_rows(state.model, batches[-1].to(state.model.device))  # others of the group run one more
    total = all_sum(total, state.model.device)
    return max(0.0, float(total) / (2 * plan.batch_pairs))


def _fields(loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
    return loss.per_pair_B, loss.chosen_reward_B, loss.rejected_reward_B


class _Embedding:
    """Looks the tokens' embeddings up and adds their gradient to the float32 master, row by row.

    Left to autograd, each micro-batch would make, fill and convert a gradient as large as the vocabulary.
    """

    def __init__(self, state: TrainState, batch: MicroBatch) -> None:
        module = state.model.get_input_embeddings()
        self._batch = batch
        self._padding = getattr(module, "padding_idx", None)
        self._grad_Vh = None
        self.rows_1Th: Tensor | None = None
        """A leaf of the graph; None where the model must look them up: a frozen embedding, or one that does more."""
        if type(module) is nn.Embedding and module.weight.requires_grad:
            self._grad_Vh = _gradient_of(state, module.weight)
            self.rows_1Th = module.weight.detach()[batch.input_ids_T][None].requires_grad_()

    def collect(self) -> None:
        """After the backward."""
        if self.rows_1Th is None or self._grad_Vh is None or self.rows_1Th.grad is None:
            return
        ids_T, grad_Th = self._batch.input_ids_T, self.rows_1Th.grad[0].float()
        if self._padding is not None:  # as nn.Embedding does
            grad_Th = grad_Th.masked_fill_((ids_T == self._padding)[:, None], 0.0)
        self._grad_Vh.index_add_(0, ids_T, grad_Th)


def _gradient_of(state: TrainState, parameter: Tensor) -> Tensor | None:
    """The float32 gradient of a parameter's master, made if there is none yet; None for a frozen parameter."""
    for trained, weight in zip(state.trained(), state.weights, strict=True):
        if trained is parameter:
            return _gradient(weight)
    return None


def _gradient(weight: nn.Parameter) -> Tensor:
    """The whole float32 gradient of a weight, to add to in place; made if there is none yet."""
    if weight.grad is None:
        weight.grad = zero_gradient(weight)
    return own_part(weight.grad)


def _collect(state: TrainState) -> None:
    """Move gradients of the model's own weights into their float32 masters, where these are others."""
    for parameter, weight in zip(state.trained(), state.weights, strict=True):
        if parameter is not weight and parameter.grad is not None:
            if weight.grad is None and not is_sharded(state.model):
                weight.grad = parameter.grad.float()
            else:
                _gradient(weight).add_(parameter.grad)
            parameter.grad = None


def _keep_company(state: TrainState, batch: MicroBatch) -> None:
    """A forward and backward without a gradient, for a worker that has no micro-batch when others of a group have."""
    hidden_Sh = hidden_rows(state.model, batch)
    hidden_Sh.backward(torch.zeros_like(hidden_Sh))  # type: ignore[no-untyped-call]
    _collect(state)


def _batch_sums(loss: Loss, sums_2B: Tensor, batch: MicroBatch) -> Tensor:
    """Sums over the micro-batch's pairs, in the order of _MEANS. An absent rejected side counts 0."""
    margin_B = loss.chosen_reward_B - loss.rejected_reward_B
    mean_2B = sums_2B / batch.lengths_2B.clamp(min=1)
    parts = (loss.per_pair_B, (margin_B > 0).float(), margin_B, mean_2B[0::2], mean_2B[1::2])
    return torch.stack([part.double().sum() for part in parts])


def _move(state: TrainState, loss: float, rate: float) -> float:
    """Check, clip, step, publish. Returns the gradient norm before clipping."""
    if not math.isfinite(loss):
        raise NonFiniteStep(state.step + 1, "the loss")
    grad_norm = clip_gradients(state.weights, state.optim.max_grad_norm)
    if not math.isfinite(grad_norm):
        raise NonFiniteStep(state.step + 1, "the gradient norm")
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    state.publish()
    return grad_norm
