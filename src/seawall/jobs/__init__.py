"""The whole job: stages in order, each handed what it needs. Stages do not know each other; this layer does."""
