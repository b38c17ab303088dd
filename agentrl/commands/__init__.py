"""What the commands do, one module each; ``agentrl.cli`` imports a module only when its command runs."""
