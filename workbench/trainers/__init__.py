"""Trainers: a `step()` you can call, a `state_dict()` you can save. No trainer imports another."""
