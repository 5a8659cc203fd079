"""The embedded model: where its weights come from, how it is built, and the prompts that go with it."""
