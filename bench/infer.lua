-- For wrk: posts the body in the file BODY as JSON and sums up what came back in one line for a program to read.
local file = assert(io.open(assert(os.getenv("BODY")), "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
wrk.headers["Content-Type"] = "application/json"
file:close()

local workers = {}

function setup(worker)
  worker:set("refused", 0)
  workers[#workers + 1] = worker
end

function response(status)
  if status ~= 200 then refused = refused + 1 end
end

function done(summary, latency)
  local failed = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  for _, worker in ipairs(workers) do failed = failed + worker:get("refused") end
  local per_second = summary.requests / summary.duration * 1e6
  print(string.format('RESULT {"p50_us":%d,"p99_us":%d,"per_second":%.1f,"failed":%d}',
    latency:percentile(50), latency:percentile(99), per_second, failed))
end
