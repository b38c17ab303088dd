"""Sandbox providers that ship with agentrl, registered in the entry-point group ``agentrl.sandboxes``."""
