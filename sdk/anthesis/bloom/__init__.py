"""The torch-free part of the model library as the platform itself has it: shapes, plans, checkpoint headers."""
