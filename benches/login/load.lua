-- What wrk sends, at a pace, and the figures it prints at the end as one line of JSON after "@@".
--
-- Arguments: milliseconds between an answer and the next request of the same connection; "login" for
-- logins with names that nobody has, nothing for the requests of the command line.

local pause, number = 0, 0

function init(arguments)
    pause = tonumber(arguments[1])
    if arguments[2] == "login" then
        request = function()
            number = number + 1
            local body = string.format('{"username":"user%d","password":"wrong password"}', number)
            return wrk.format("POST", nil, { ["Content-Type"] = "application/json" }, body)
        end
    end
end

-- Not all at once again and again: a little more or less each time.
function delay()
    return pause * (0.5 + math.random())
end

function done(summary, latency, _)
    local errors = summary.errors
    io.write(string.format(
        '@@{"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "refused": %d, "broken": %d}\n',
        summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
        errors.status, errors.connect + errors.read + errors.write + errors.timeout
    ))
end
