"""Bi-level GAE (Wang et al. 2025, "VAGEN"): advantages over turns first, then over the tokens of each turn, down from the turn's own."""

from dataclasses import replace

from base import WITH_CRITIC, playing

from agentrl.credit.gae import BiLevelGAE
from agentrl.credit.modifiers import Whiten

recipe = playing(
    "bilevel_gae", replace(WITH_CRITIC, credit=BiLevelGAE(gamma_turn=0.95), modifiers=(Whiten(per="token"),))
)
