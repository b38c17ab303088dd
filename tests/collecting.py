"""Collecting the data of updates from a source, as a run would, in this process."""

import asyncio

import tiny
from corridor import Corridor

from agentrl.hosts.in_process import InProcess
from agentrl.learner.model import train_tokenizer
from agentrl.learner.spec import TrainedTokenizer
from agentrl.policy import RandomPolicy
from agentrl.recipe import Collected, Playground
from agentrl.rewards.outcome import EnvReward, Outcome
from agentrl.rewards.payment import Payment
from agentrl.rollout import Limits
from agentrl.samplers.filters import DynamicSampling

PAY = Payment(reward=EnvReward())
PICKY = Payment(reward=Outcome(), filters=(DynamicSampling(),))


def collect(
    source, folder, *, updates=(0,), env=None, agent=None, payment=PAY, min_group=1, seed=0, agent_at=None
) -> list[Collected]:
    """Collect the updates in sequence, like a run that is opened once."""
    env = env or Corridor()

    async def run():
        async with InProcess(env, 10.0) as host:
            ground = Playground(
                agent=agent or RandomPolicy(),
                agent_at=agent_at,
                host=host,
                renderer=tiny.Letters(train_tokenizer(["door a b c d"], TrainedTokenizer(vocab_size=262))),
                tasks={split: env.tasks(split) for split in env.splits},
                limits=Limits(max_turns=env.max_turns),
                seed=seed,
                folder=folder,
            )
            return [
                await source.collect(ground, payment, name="stage", update=u, min_group=min_group)
                for u in updates
            ]

    return asyncio.run(run())
