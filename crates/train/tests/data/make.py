"""Writes small data sets with the tools that users write them with, into the folder given."""
import csv
import gzip
import json
import pathlib
import struct
import sys

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
from PIL import Image

folder = pathlib.Path(sys.argv[1])
rng = np.random.default_rng(3)

images = rng.integers(0, 256, (12, 5, 4), dtype=np.uint8)
labels = (np.arange(12) % 3).astype(np.uint8)
np.savez_compressed(folder / "medical.npz", train_images=images[:8], train_labels=labels[:8, None],
                    val_images=images[8:], val_labels=labels[8:, None])
np.savez(folder / "keras.npz", x_train=images[:9], y_train=labels[:9], x_test=images[9:], y_test=labels[9:])
np.save(folder / "inputs.npy", images.astype(np.float64))
np.save(folder / "labels.npy", labels.astype(np.int32))
np.save(folder / "fortran.npy", np.asfortranarray(images))
np.save(folder / "big.npy", images.astype(">f4"))

with gzip.open(folder / "train-images-idx3-ubyte.gz", "wb") as file:
    file.write(struct.pack(">BBBBIII", 0, 0, 8, 3, *images.shape) + images.tobytes())
with gzip.open(folder / "train-labels-idx1-ubyte.gz", "wb") as file:
    file.write(struct.pack(">BBBBI", 0, 0, 8, 1, len(labels)) + labels.tobytes())

names = ["cat", "dog", "eel"]
rows = [{"age": float(i) / 3, "weight": i * 7, "note": f'a "{i}", or\nmore', "kind": names[i % 3]} for i in range(12)]
with open(folder / "rows.csv", "w", newline="") as file:
    writer = csv.DictWriter(file, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)

table = pa.table({
    "small": pa.array([int(i) for i in range(12)], pa.int8()),
    "double": pa.array([i / 7 for i in range(12)], pa.float64()),
    "list": pa.array([[i, i + 1, i + 2] for i in range(12)], pa.list_(pa.float32())),
    "words": pa.array([names[i % 3] for i in range(12)]).dictionary_encode(),
    "target": pa.array([i % 2 for i in range(12)], pa.int64()),
})
for codec in ["none", "snappy", "gzip", "zstd"]:
    pa.parquet.write_table(table, folder / f"{codec}.parquet", compression=codec, row_group_size=5)
pa.feather.write_feather(table, folder / "table.feather", compression="uncompressed")
with pa.OSFile(str(folder / "stream.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
    writer.write_table(table, max_chunksize=4)
holes = table.set_column(1, "double", pa.array([None if i == 6 else 1.0 for i in range(12)], pa.float64()))
pa.parquet.write_table(holes, folder / "holes.parquet", row_group_size=5)

for part, count in [("train", 4), ("val", 2)]:
    for number, name in enumerate(names):
        place = folder / "pictures" / part / name
        place.mkdir(parents=True)
        for index in range(count):
            pixels = np.full((6, 8, 3), [number * 40, index * 10, 200], np.uint8)
            Image.fromarray(pixels).save(place / f"{index}.{'png' if index % 2 else 'bmp'}")

json.dump({"images": images.tolist(), "labels": labels.tolist(), "double": [i / 7 for i in range(12)]}, sys.stdout)
