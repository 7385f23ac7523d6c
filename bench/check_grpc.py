"""One request over gRPC must come back as it was: h2load looks at no gRPC status. `check_grpc.py ADDRESS MODEL`."""
import sys

import numpy as np
import tritonclient.grpc as grpc

sent = np.arange(16, dtype=np.float32)[None] * np.float32(0.123457)
tensor = grpc.InferInput("INPUT0", [1, 16], "FP32")
tensor.set_data_from_numpy(sent)
response = grpc.InferenceServerClient(sys.argv[1]).infer(sys.argv[2], [tensor])
output = response.get_response().outputs[0]
got = response.as_numpy("OUTPUT0") if response.get_response().raw_output_contents else output.contents.fp32_contents
np.testing.assert_array_equal(np.asarray(got, np.float32).reshape(1, 16), sent)
