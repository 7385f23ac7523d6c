"""The identity model on KServe's Python server: `kserve_identity.py HTTP_PORT GRPC_PORT`."""
import logging
import sys

import grpc.aio._server as grpc_server
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.protocol.rest import server as rest_server

LOOPBACK = "127.0.0.1"


def listen_on_loopback():
    """kserve 0.21 takes no address and would listen on all of them."""
    config, add_port = rest_server.uvicorn.Config, grpc_server.Server.add_insecure_port
    rest_server.uvicorn.Config = lambda *args, **named: config(*args, **(named | {"host": LOOPBACK}))
    grpc_server.Server.add_insecure_port = lambda self, at: add_port(self, at.replace("[::]", LOOPBACK))


class Identity(Model):
    def __init__(self):
        super().__init__("identity")
        self.ready = True

    async def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:
        given = payload.inputs[0]
        output = InferOutput("OUTPUT0", given.shape, given.datatype)
        output.set_data_from_numpy(given.as_numpy(), binary_data=payload.use_binary_outputs)
        # An answer without an id is refused by kserve's own types.
        return InferResponse(
            payload.id or "0", self.name, infer_outputs=[output], use_binary_outputs=payload.use_binary_outputs
        )


listen_on_loopback()
# A line of log per request would be measured too.
for name in ("kserve.trace", "uvicorn.access"):
    logging.getLogger(name).setLevel(logging.WARNING)
http_port, grpc_port = map(int, sys.argv[1:])
server = ModelServer(
    http_port=http_port, grpc_port=grpc_port, workers=1, access_log_format=None, enable_latency_logging=False
)
server.start([Identity()])
