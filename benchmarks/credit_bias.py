"""The exact bias and variance of each credit rule: its expected gradient compared with the policy gradient.

    python benchmarks/credit_bias.py                 # the table of docs/methods.md: groups of 3, two policies
    python benchmarks/credit_bias.py --group-size 2 --seeds 0 1 2

Every group of episodes of a small world with variable stopping times is enumerated (``agentrl.testing.mdp``).
Nothing is sampled, so the numbers are the same on every machine. ``cosine``: 1 if the direction is right.
``error``: the length of the difference that remains after the best constant factor, relative to the policy
gradient; 0 means unbiased up to that factor, which is ``scale``. ``variance``: the trace of the estimate's
covariance, relative to the policy gradient's squared length. The last rows are controls.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import numpy as np
from rich.console import Console
from rich.table import Table

from agentrl.credit import Credit
from agentrl.credit.anchors import HGPO, GiGPO
from agentrl.credit.baselines import OthersAtTurn, OthersStart
from agentrl.credit.components import GDPO, MTGRPO, EpisodeAndSteps
from agentrl.credit.entropy import EMPG
from agentrl.credit.gae import BiLevelGAE, TokenGAE, TurnGAE
from agentrl.credit.group import GRPO, RLOO, DrGRPO
from agentrl.credit.modifiers import Modified, ScaleAdvantages
from agentrl.credit.returns import TurnReturn, reinforce_plus_plus_baseline, turn_rloo
from agentrl.credit.strata import Stratified, num_turns
from agentrl.testing.mdp import bias

RULES: Mapping[str, Credit] = {
    "return to go": TurnReturn(),
    "return to go - others' start": TurnReturn(baseline=OthersStart()),
    "return to go - others at the turn": TurnReturn(baseline=OthersAtTurn()),
    "RLOO": RLOO(),
    "Dr.GRPO": DrGRPO(),
    "token GAE, lambda 1": TokenGAE(1.0, 1.0),
    "turn GAE, lambda 1": TurnGAE(1.0, 1.0),
    "bi-level GAE, lambda 1": BiLevelGAE(1.0, 1.0, 1.0),
    "token GAE, lambda 0.95": TokenGAE(1.0, 0.95),
    "turn GAE, lambda 0.95": TurnGAE(1.0, 0.95),
    "bi-level GAE, gamma 0.95": BiLevelGAE(),
    "turn RLOO / batch deviation": turn_rloo(gamma=1.0),
    "GRPO": GRPO(),
    "REINFORCE++ with baseline": reinforce_plus_plus_baseline(),
    "GDPO": GDPO({"outcome": 1.0, "steps": 1.0}),
    "MT-GRPO (by turn index)": MTGRPO(process="steps"),
    "iStar's combination": EpisodeAndSteps(process="steps"),
    "GiGPO": GiGPO(gamma=1.0),
    "HGPO": HGPO(gamma=1.0, deviation=False),
    "stratified by turns, alpha 1": Stratified(num_turns, alpha=1.0),
    "stratified by turns, alpha 0.8": Stratified(num_turns),
    "RLOO + EMPG": Modified(RLOO(), (EMPG(),)),
    "control: RLOO flipped": Modified(RLOO(), (ScaleAdvantages(-1.0),)),
}
WRONG_BY = 0.5
CRITICS = (
    "token GAE, lambda 1",
    "token GAE, lambda 0.95",
    "turn GAE, lambda 0.95",
    "bi-level GAE, gamma 0.95",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--group-size", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    table = Table(
        title=f"expected gradients over all groups of {options.group_size}, "
        f"mean over {len(options.seeds)} policies"
    )
    for column in ("rule", "cosine", "scale", "error", "variance"):
        table.add_column(column, justify="left" if column == "rule" else "right")
    rows = [(name, rule, 0.0) for name, rule in RULES.items()]
    rows += [(f"{name}, critic wrong", RULES[name], WRONG_BY) for name in CRITICS]
    for name, rule, wrong_by in rows:
        found = [
            bias(rule, group_size=options.group_size, seed=seed, wrong_by=wrong_by) for seed in options.seeds
        ]
        means = [
            float(np.mean([getattr(one, column) for one in found]))
            for column in ("cosine", "scale", "error", "variance")
        ]
        table.add_row(
            name,
            f"{means[0]:.4f}",
            f"{means[1]:.3f}",
            f"{max(means[2], 0.0):.1e}" if means[2] < 1e-4 else f"{means[2]:.3f}",
            f"{means[3]:.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
