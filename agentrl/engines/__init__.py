"""Engines: policies whose weights can be replaced. `local` runs in this process with torch; `openai` asks any served model."""
