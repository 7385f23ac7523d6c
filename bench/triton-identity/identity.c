/* A Triton backend that answers each request with its first input as `OUTPUT0`: what Triton itself costs.
 *
 * Only what is called of the backend API (triton-inference-server/core, tritonbackend.h) is declared here, since the
 * wheel that carries the server has no headers. The symbols are found in the server's process.
 *
 *   cc -O2 -shared -fPIC -o BACKENDS/identity/libtriton_identity.so identity.c
 */
#include <stdint.h>
#include <string.h>

typedef struct error error;
typedef struct instance instance;
typedef struct request request;
typedef struct input input;
typedef struct response response;
typedef struct output output;

enum { RELEASE_ALL = 1, RESPONSE_FINAL = 1, MEMORY_CPU = 0 };

error* TRITONBACKEND_RequestInputByIndex(request*, uint32_t index, input**);
error* TRITONBACKEND_InputProperties(input*, const char** name, int* datatype, const int64_t** shape,
                                     uint32_t* rank, uint64_t* byte_size, uint32_t* buffer_count);
error* TRITONBACKEND_InputBuffer(input*, uint32_t index, const void** buffer, uint64_t* byte_size, int* memory_type,
                                 int64_t* memory_id);
error* TRITONBACKEND_ResponseNew(response**, request*);
error* TRITONBACKEND_ResponseOutput(response*, output**, const char* name, int datatype, const int64_t* shape,
                                    uint32_t rank);
error* TRITONBACKEND_OutputBuffer(output*, void** buffer, uint64_t byte_size, int* memory_type, int64_t* memory_id);
error* TRITONBACKEND_ResponseSend(response*, uint32_t flags, error*);
error* TRITONBACKEND_RequestRelease(request*, uint32_t flags);

/* Gathers the buffers of an input into one output buffer. */
static error* gather(input* from, uint32_t buffer_count, char* to) {
  for (uint32_t index = 0; index < buffer_count; index++) {
    const void* part = 0;
    uint64_t part_size = 0;
    int memory_type = MEMORY_CPU;
    int64_t memory_id = 0;
    error* failed = TRITONBACKEND_InputBuffer(from, index, &part, &part_size, &memory_type, &memory_id);
    if (failed) return failed;
    memcpy(to, part, part_size);
    to += part_size;
  }
  return 0;
}

static error* echo(request* asked, response* answer) {
  input* from = 0;
  output* to = 0;
  const char* name = 0;
  const int64_t* shape = 0;
  void* buffer = 0;
  int datatype = 0, memory_type = MEMORY_CPU;
  int64_t memory_id = 0;
  uint64_t byte_size = 0;
  uint32_t rank = 0, buffer_count = 0;
  error* failed = TRITONBACKEND_RequestInputByIndex(asked, 0, &from);
  if (!failed) failed = TRITONBACKEND_InputProperties(from, &name, &datatype, &shape, &rank, &byte_size, &buffer_count);
  if (!failed) failed = TRITONBACKEND_ResponseOutput(answer, &to, "OUTPUT0", datatype, shape, rank);
  if (!failed) failed = TRITONBACKEND_OutputBuffer(to, &buffer, byte_size, &memory_type, &memory_id);
  return failed ? failed : gather(from, buffer_count, buffer);
}

error* TRITONBACKEND_ModelInstanceExecute(instance* unused, request** requests, const uint32_t count) {
  (void)unused;
  for (uint32_t i = 0; i < count; i++) {
    response* answer = 0;
    error* failed = TRITONBACKEND_ResponseNew(&answer, requests[i]);
    if (failed) return failed;
    TRITONBACKEND_ResponseSend(answer, RESPONSE_FINAL, echo(requests[i], answer));
    TRITONBACKEND_RequestRelease(requests[i], RELEASE_ALL);
  }
  return 0;
}
