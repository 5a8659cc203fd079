"""What a model can do: tasks of lm-evaluation-harness, kept question by question to be paired before and after."""
