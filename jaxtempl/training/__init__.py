"""The training loop, its objectives, optimizer, state and trackers, and the two phases: adapt and finetune."""
