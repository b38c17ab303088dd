"""Sandbox providers that ship with agentrl; each registers under the entry-point group ``agentrl.sandboxes``."""
