"""Unlearning depth: is the knowledge gone from the layers that encode it, or only kept from coming out?"""

from typing import Any

import torch

from dipo_pl.attacks.base import Attack, Outcome
from dipo_pl.attacks.intervals import of_rows
from dipo_pl.attacks.spans import entity_batches, in_row_order, span_of
from dipo_pl.attacks.subject import CALLED, RETAIN_ONLY, TARGET, UNLEARNED, Subject
from dipo_pl.errors import InputError, check_number
from dipo_pl.metrics.unlearning_depth import depth_scores, layer_shares
from dipo_pl.models.upper_layers import check_layers, patched_log_probabilities, position_states

# Keys of a configuration that must be equal in models whose layers are exchanged.
SHAPE = ("model_type", "num_hidden_layers", "hidden_size", "vocab_size")


class UnlearningDepth(Attack):
    r"""Attack that puts the unlearned model's states into the target, layer by layer: the Unlearning Depth Score.

    `unlearning_depth` is 0 where the target says the answer as before, so that the knowledge is still in the states, and 1
    where it loses what it loses with the retain-only model's states. What is predicted is the row's `entity`, or the whole
    answer where it has none; see `dipo_pl.metrics.unlearning_depth`. Rows that no layer encodes do not count,
    `unlearning_depth_rows` is the number of the others.

    Source: arXiv:2605.24614.

    Args:
        threshold: nats per token from which a layer encodes a row.
        tolerance: see `Attack`; of 1 - `unlearning_depth`.
    """

    def __init__(self, threshold: float = 0.05, tolerance: float = 0.1) -> None:
        super().__init__(tolerance)
        check_number("UnlearningDepth.threshold", threshold, minimum=0)
        self.threshold = threshold

    def lacks(self, subject: Subject) -> str | None:
        """Return the model that is missing, or how the models' architectures differ."""
        if TARGET not in subject.sources:
            return "the target (--target)"
        if (missing := subject.lacks_retain_only()) is not None:
            return missing
        shapes = {name: _shape(subject, name) for name in subject.names}
        for name, shape in shapes.items():
            for key, value in shape.items():
                if value != shapes[TARGET][key]:
                    return (
                        f"models of one architecture ({key} is {value} in the {CALLED[name]} and {shapes[TARGET][key]} in "
                        "the target)"
                    )
        return None

    def run(self, subject: Subject) -> Outcome:
        """Return the score, its rows and the share that is gone from each layer."""
        found = subject.memory.part(self.name, lambda: self._log_probabilities(subject))
        full, retain, unlearned = (found[name] for name in (TARGET, RETAIN_ONLY, UNLEARNED))
        scores, has = depth_scores(full, retain, unlearned, self.threshold)
        if not has.any():
            raise InputError(
                f"no layer of the target encodes any of {len(has)} rows by more than UnlearningDepth.threshold "
                f"{self.threshold}: by this measure there was nothing to forget"
            )
        shares, counts = layer_shares(full, retain, unlearned, self.threshold)
        depth = float(scores[has].mean())
        rows: list[dict[str, Any]] = [
            {"row": row, "span": span, "unlearning_depth": score if counted else None}
            for row, (span, score, counted) in enumerate(
                zip(span_of(subject), scores.tolist(), has.tolist(), strict=True)
            )
        ]
        lost = {
            name: (torch.tensor(full)[:, None] - torch.tensor(each)).mean(0).tolist()
            for name, each in ((RETAIN_ONLY, retain), (UNLEARNED, unlearned))
        }
        series: dict[str, list[Any]] = {"layer": list(range(len(shares))), "gone": shares.tolist()}
        series |= {"rows": counts.tolist()} | {f"lost_with_{name}": each for name, each in lost.items()}
        metrics = {"unlearning_depth": depth, "unlearning_depth_rows": float(has.sum())}
        # Values of the other two models are so by definition.
        values = {TARGET: 1.0, UNLEARNED: 1 - depth, RETAIN_ONLY: 0.0}
        left = (1 - scores[has]).tolist()
        intervals = of_rows({TARGET: [1.0] * len(left), UNLEARNED: left, RETAIN_ONLY: [0.0] * len(left)})
        return Outcome("1 - Unlearning Depth Score", values, metrics, rows, series, intervals)

    def _log_probabilities(self, subject: Subject) -> dict[str, list[Any]]:
        """Return s by row, and s1 and s2 by row and layer, under the models' names."""
        places, batches = entity_batches(subject)
        states: dict[str, dict[int, torch.Tensor]] = {}
        for name in (RETAIN_ONLY, UNLEARNED):
            with subject.model(name) as model:
                check_layers(model)
                kept = states[name] = {}

                def remember(number: int, kept: dict[int, torch.Tensor] = kept, model: Any = model) -> None:
                    kept[number] = position_states(model, batches[number].to(subject.device)).cpu()

                # The same rank goes on with these batches, and keeps their states.
                what = f"states of the {CALLED[name]}, batches"
                subject.shared(range(len(batches)), remember, what)
        with subject.model(TARGET) as model:
            check_layers(model)

            def patched(number: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
                batch = batches[number].to(subject.device)
                return patched_log_probabilities(
                    model, batch, {name: each[number].to(subject.device) for name, each in states.items()}
                )

            found = subject.shared(range(len(batches)), patched, "layers exchanged, batches")
        by_row = {TARGET: in_row_order(places, [own for own, _ in found]).tolist()}
        for name in states:
            by_row[name] = in_row_order(places, [others[name] for _, others in found]).tolist()
        return by_row


def _shape(subject: Subject, name: str) -> dict[str, Any]:
    config: Any = subject.sources[name].configuration().get_text_config()
    return {key: getattr(config, key, None) for key in SHAPE}
