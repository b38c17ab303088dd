"""PPO with a value for every token (Schulman et al. 2017; for language models Ziegler et al. 2019): GAE over the episode's action tokens.

What the environment wrote is skipped: the value before an observation is followed by the value after it. Lambda is 1, and steps are small:
with 0.95, and twice these steps, success fell from 0.45 to 0.04 in the first updates of the policy, and stayed there.
"""

from dataclasses import replace

from base import WITH_CRITIC, playing

from agentrl.credit.gae import TokenGAE
from agentrl.credit.modifiers import Whiten

recipe = playing(
    "ppo_token",
    replace(
        WITH_CRITIC,
        credit=TokenGAE(gamma=1.0, lam=1.0),
        modifiers=(Whiten(per="token"),),
        optimisation=replace(WITH_CRITIC.optimisation, lr=3e-4),
    ),
)
