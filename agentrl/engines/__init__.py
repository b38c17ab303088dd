"""Engines: policies whose weights can be replaced.

``spec`` holds the values that a recipe names, ``local`` the engine that runs in this process with torch, and
``openai`` a policy over any served model.
"""
