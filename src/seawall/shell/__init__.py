"""What every verb does the same way: open the folder, the recipe, the model and the judge once, and run a stage."""
