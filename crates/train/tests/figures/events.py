"""Scalars that TensorBoard's own reader finds in an event file."""
import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

accumulator = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0})
accumulator.Reload()
json.dump({tag: [[e.step, e.value, e.wall_time] for e in accumulator.Scalars(tag)]
           for tag in accumulator.Tags()["scalars"]}, sys.stdout)
