-- What wrk sends, and the figures it prints at the end as one line of JSON after "@@".
--
-- With a file of tokens as its argument it sends them in turn; without, the headers of the command line.

local requests, next_one = {}, 0

function init(arguments)
    if arguments[1] then
        for token in io.lines(arguments[1]) do
            requests[#requests + 1] = wrk.format(nil, nil, { ["Authorization"] = "Bearer " .. token })
        end
        request = function()
            next_one = next_one % #requests + 1
            return requests[next_one]
        end
    end
end

function done(summary, latency, _)
    local errors = summary.errors
    io.write(string.format(
        '@@{"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "refused": %d, "broken": %d}\n',
        summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
        errors.status, errors.connect + errors.read + errors.write + errors.timeout
    ))
end
