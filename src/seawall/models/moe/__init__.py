"""Mixture-of-experts layers: finding them, recording, replaying and switching routing, training some experts."""
