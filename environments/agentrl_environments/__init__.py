"""Environments that ship with agentrl, registered under the entry-point group ``agentrl.environments``."""
