"""A2C (synchronous advantage actor-critic) as a LightningModule, and the run function of the Atari experiments."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from common.random import Stream, seeded
from common.runs import Execution, Folder
from common.trainer import Schedule, fit, save_weights
from papers.coordconv.atari.config import Config
from papers.coordconv.atari.environments import Environments
from papers.coordconv.atari.networks import ActorCritic, returns_of, sample


class A2C(pl.LightningModule):
    """One network that plays `num_envs` games and learns from every `num_steps` actions of each.

    A checkpoint holds the games too (`get_extra_state`), so a resumed run plays on as if nothing had happened. The
    network computes in float32 whatever the run's precision: it is small, and a policy gradient is a difference of
    close numbers.
    """

    def __init__(self, config: Config, seed: int, execution: Execution):
        super().__init__()
        self.automatic_optimization = False
        self.config, self.seed, self.execution = config, seed, execution
        self.environments = Environments(config, seed)
        with seeded(Stream(seed, "initialisation")):
            self.model = ActorCritic(config, self.environments.num_actions)
        self.step, self.samples_per_step = 0, config.frames_per_update

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """RMSProp; epsilon is added to the root, as PyTorch does."""
        self.optimizer = torch.optim.RMSprop(
            self.model.parameters(), self.config.learning_rate, self.config.decay, self.config.epsilon
        )
        return self.optimizer

    def on_fit_start(self) -> None:
        """Move to the device what is computed there."""
        self.environments.to(self.device)
        self.actions = Stream(self.seed, "actions", self.device)
        if self.execution.compile:
            self.model.compile()

    def get_extra_state(self) -> dict[str, Any]:
        """The games, for the checkpoint."""
        return self.environments.state()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on with the games of a checkpoint."""
        self.environments.restore(state)

    @torch.no_grad()
    def play(self, update: int) -> tuple[Tensor, Tensor, Tensor]:
        """`num_steps` actions in each environment: observations [T*E, ...], actions [T*E] and returns [T*E]."""
        config = self.config
        uniforms = self.actions.uniform(update, config.num_steps * config.num_envs).view(config.num_steps, -1)
        observations, actions, rewards, dones = [], [], [], []
        for uniform in uniforms:
            observations.append(self.environments.observations)
            logits, _ = self.model(observations[-1])
            actions.append(sample(logits, uniform))
            reward, done = self.environments.step(actions[-1].tolist())
            rewards.append(reward)
            dones.append(done)
        _, last_values = self.model(self.environments.observations)
        returns = returns_of(torch.stack(rewards), torch.stack(dones), last_values, config.discount)
        return torch.cat(observations), torch.cat(actions), returns.flatten()

    def update(self, number: int) -> dict[str, Tensor]:
        """Play, then one step on policy gradient + value_weight * squared error - entropy_weight * entropy."""
        config = self.config
        observations, actions, returns = self.play(number)
        logits, values = self.model(observations)
        log_probs = F.log_softmax(logits, -1)
        advantages = returns - values.detach()
        policy_loss = -(advantages * log_probs.gather(1, actions[:, None])[:, 0]).mean()
        value_loss = F.mse_loss(values, returns)
        entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
        loss = policy_loss + config.value_weight * value_loss - config.entropy_weight * entropy
        rate = config.learning_rate * (1 - number / config.updates if config.anneal else 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.optimizer.step()
        return {"loss": loss.detach(), "value_loss": value_loss.detach(), "entropy": entropy.detach()}

    def training_step(self, bounds: tuple[int, int]) -> dict[str, Tensor]:
        """The updates range(*bounds); the losses of the last one."""
        outputs: dict[str, Tensor] = {}
        with torch.autocast(self.device.type, enabled=False):
            for number in range(*bounds):
                outputs = self.update(number)
        return outputs

    def evaluate(self) -> dict[str, float]:
        """The score so far, and how many games have ended."""
        return {"score": self.environments.score(), "games": float(self.environments.games_played)}


def run(config: Mapping[str, Any], folder: Folder, needs: Mapping[str, Path]) -> dict[str, Any]:
    """Train one arm on one game; {"score": mean return of the last whole games, "games": how many were played}.

    UserError where the game needs the emulator and ale-py is not installed.
    """
    settings = Config.of(config)
    module = A2C(settings, int(config["seed"]), folder.execution)
    schedule = Schedule(
        settings.updates,
        settings.evaluate_every,
        settings.checkpoint_every,
        settings.log_every,
        settings.steps_per_call,
    )
    fit(module, folder, schedule)
    save_weights(folder, module.model.state_dict())
    return module.evaluate()
