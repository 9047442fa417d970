-- Asks Portcullis whether the request at hand may be forwarded. Nothing but its 200 lets it pass.
local socket = require "socket"

local asked_host, asked_port = "127.0.0.1", 9091   -- gateway.yaml: forward_auth.listen
local patience = 5   -- seconds

-- Paths of the gateway's own: it is not asked about them.
local UNASKED = { ["/auth/login"] = true, ["/auth/logout"] = true, ["/auth/rotate"] = true,
    ["/.well-known/jwks.json"] = true }

-- End at each connection, or belong to the question itself.
local OWN = { ["connection"] = true, ["keep-alive"] = true, ["proxy-connection"] = true, ["te"] = true,
    ["transfer-encoding"] = true, ["content-length"] = true, ["upgrade"] = true, ["expect"] = true, ["host"] = true,
    ["x-forwarded-for"] = true, ["x-forwarded-method"] = true, ["x-forwarded-uri"] = true,
    ["x-forwarded-host"] = true }

-- What a refusal hands on to the client.
local HANDED_ON = { ["location"] = "Location", ["www-authenticate"] = "WWW-Authenticate",
    ["cache-control"] = "Cache-Control", ["retry-after"] = "Retry-After", ["set-cookie"] = "Set-Cookie" }

-- In the place of the client's own.
local IDENTITY = { "X-Auth-Id", "X-Auth-User", "X-Auth-Role" }

-- Status, headers (lower-case) and body of the answer; nothing where there is none.
local function question(r)
    local lines = {
        "GET / HTTP/1.1",
        "Host: " .. (r.headers_in["Host"] or "none"),
        "Connection: close",
        "X-Forwarded-Method: " .. r.method,
        "X-Forwarded-Uri: " .. r.unparsed_uri,   -- as the client sent it
        "X-Forwarded-Host: " .. (r.headers_in["Host"] or ""),
        "X-Forwarded-For: " .. r.useragent_ip,
    }
    for name, value in pairs(r:headers_in_table()) do
        if not OWN[name:lower()] then lines[#lines + 1] = name .. ": " .. value end
    end
    local asked = socket.tcp()
    asked:settimeout(patience)
    if not asked:connect(asked_host, asked_port) then return nil end
    asked:send(table.concat(lines, "\r\n") .. "\r\n\r\n")
    local answer = asked:receive("*a")
    asked:close()
    local head, body = (answer or ""):match("^(HTTP/1%.1 .-\r\n)\r\n(.*)$")
    if not head then return nil end
    local headers = {}
    for name, value in head:gmatch("\r?\n?([%w-]+): ([^\r\n]*)") do headers[name:lower()] = value end
    return tonumber(head:match("^HTTP/1%.1 (%d%d%d)")), headers, body
end

function ask(r)
    if UNASKED[r.uri] and r.unparsed_uri:match("^[^?]*") == r.uri then return apache2.DECLINED end
    local status, headers, body = question(r)
    if status == 200 then
        -- The gateway was told these in the client's place, and the CMS is to hear nothing of them.
        r.headers_in["X-Forwarded-Method"], r.headers_in["X-Forwarded-Uri"] = nil, nil
        for _, name in ipairs(IDENTITY) do r.headers_in[name] = headers[name:lower()] end
        -- The token stays here: the CMS reads who it is from X-Auth-*.
        if (r.headers_in["Authorization"] or ""):lower():match("^bearer") then r.headers_in["Authorization"] = nil end
        local cookie = r.headers_in["Cookie"]
        if cookie then
            cookie = cookie:gsub("__Host%-portcullis_token=[^;]*;?%s*", ""):gsub("portcullis_token=[^;]*;?%s*", "")
            r.headers_in["Cookie"] = cookie
        end
        -- A fresh cookie now and then, for a browser in use.
        if headers["set-cookie"] then r.err_headers_out["Set-Cookie"] = headers["set-cookie"] end
        return apache2.OK
    end
    if not status or (status < 400 and status ~= 303) then return 503 end
    r.status = status
    for name, written in pairs(HANDED_ON) do
        if headers[name] then r.headers_out[written] = headers[name] end
    end
    r.content_type = headers["content-type"] or "text/plain"
    r:puts(body)
    return apache2.DONE
end
