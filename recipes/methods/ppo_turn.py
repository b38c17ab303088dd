"""Turn-PPO (Li et al. 2025): a whole turn is one action. The critic is read where a turn begins, and GAE runs over turns.

The discount is that of the demo: what matters here lies a few turns ahead.
"""

from dataclasses import replace

from base import WITH_CRITIC, playing

from agentrl.credit.gae import TurnGAE
from agentrl.credit.modifiers import Whiten

recipe = playing("ppo_turn", replace(WITH_CRITIC, credit=TurnGAE(gamma=0.9, lam=0.95), modifiers=(Whiten(),)))
