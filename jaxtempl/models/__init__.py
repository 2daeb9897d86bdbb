"""The model families in Flax NNX: GPT-NeoX and BERT."""
