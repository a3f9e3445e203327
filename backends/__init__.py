"""Engines and the nouns everybody shares: wire types, registry, relay, local models."""
