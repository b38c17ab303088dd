"""A 0.45M model with random weights learns to find the coin in TextWorld houses that it has never seen.

There are three stages. ``explore`` is language modelling on random play, without an expert or rewards, to
learn how the world responds. ``imitate`` imitates 40 expert episodes. ``learn`` is PPO over turns: the model
plays new games by itself, is rewarded for finding the coin, and pays a small penalty for each refused
command.

Result with seeds 0, 1 and 2, in 3 to 4 minutes on two cores: success on 200 held-out games is 0.38, 0.42 and
0.29 after ``imitate`` and 0.99, 0.96 and 0.92 after ``learn``; random play has 0.13 to 0.20.
"""

from agentrl_environments.textworld import TextWorld

import agentrl as rl

recipe = rl.Recipe(
    name="textworld_demo",
    # The seeds that fill the test panel hold 540 training games.
    env=TextWorld(game="coin-r8-q4", max_turns=20, train=540),
    model=rl.ModelSpec(
        shape=rl.Shape(hidden=128, layers=2, max_context=512), tokenizer=rl.TrainedTokenizer(vocab_size=448)
    ),
    sampling=rl.Sampling(temperature=1.0, max_tokens=8),
    limits=rl.Limits(concurrency=128),
    compute=rl.Compute(threads=2),
    stages=(
        rl.Stage(
            name="explore",
            updates=30,
            source=rl.Demonstrations(
                policy=rl.RandomPolicy(avoid=("examine", "inventory", "look")),
                num_episodes=2400,
                batch=80,
                max_turns=8,
            ),
            credit=rl.ConstantCredit(1.0),
            objective=rl.Objective(observation_weight=1.0),
            optimisation=rl.Optimisation(lr=2e-3, warmup_updates=2, schedule=rl.Linear(0.1)),
            minibatches=10,
        ),
        rl.Stage(
            name="imitate",
            updates=4,
            source=rl.Demonstrations(policy=rl.ExpertPolicy(), num_episodes=40),
            credit=rl.ConstantCredit(1.0),
            objective=rl.Objective(observation_weight=0.3),
            optimisation=rl.Optimisation(lr=1e-3, schedule=rl.Linear(0.1)),
            minibatches=4,
            evaluate=True,
        ),
        rl.Stage(
            name="learn",
            updates=140,
            source=rl.Rollouts(num_groups=64, group_size=1),
            reward=rl.Sum((rl.Outcome(), rl.Format(penalty=0.1))),
            # A critic is needed: with the batch's mean as the only baseline, refused commands became frequent
            # again from about update 40 on, and success fell.
            credit=rl.TurnGAE(gamma=0.9, lam=0.95),
            modifiers=(rl.Whiten(),),
            objective=rl.Objective(loss=rl.Clip(0.2, 0.2), value=rl.ValueLoss(0.5)),
            optimisation=rl.Optimisation(
                lr=6e-4, warmup_updates=3, freeze_policy_updates=3, schedule=rl.Linear(0.1)
            ),
            epochs=2,
            minibatches=4,
            evaluate=True,
            evaluate_every=30,
        ),
    ),
    evaluation=rl.Evaluation(
        split="test",
        sampling=rl.Sampling(temperature=0.3, max_tokens=8),
        baselines={"random": rl.RandomPolicy(), "expert": rl.ExpertPolicy()},
    ),
)
