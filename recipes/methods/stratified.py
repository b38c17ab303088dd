"""Stratified GRPO (Zhu et al. 2025): episodes are compared with those of their group that are built alike, here that took as many turns.

A share of the comparison with all stays, or nothing would ever say that fewer turns are better.
"""

from dataclasses import replace

from base import LEARN, playing

from agentrl.credit.strata import Stratified, num_turns

recipe = playing("stratified", replace(LEARN, credit=Stratified(stratum=num_turns, alpha=0.8)))
