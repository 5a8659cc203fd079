"""seawall: audit, repair and certify the safety of open-weight language models, mixture-of-experts first."""

__version__ = "0.1.0"
