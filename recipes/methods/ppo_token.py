"""PPO with a value for every token (Schulman et al. 2017; for language models Ziegler et al. 2019): GAE over the episode's action tokens.

What the environment wrote is skipped: the value before an observation is followed by the value after it.
"""

from dataclasses import replace

from base import WITH_CRITIC, playing

from agentrl.credit.gae import TokenGAE
from agentrl.credit.modifiers import Whiten

recipe = playing("ppo_token", replace(WITH_CRITIC, credit=TokenGAE(gamma=1.0, lam=0.95), modifiers=(Whiten(per="token"),)))
