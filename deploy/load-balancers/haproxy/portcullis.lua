-- Asks Portcullis whether the request at hand may be forwarded. Nothing but its 200 lets it pass.
local DECISION = "http://127.0.0.1:9091/"   -- gateway.yaml: forward_auth.listen

-- End at each connection, or belong to the question itself.
local OWN = {
    ["connection"] = true, ["keep-alive"] = true, ["proxy-connection"] = true, ["te"] = true,
    ["transfer-encoding"] = true, ["content-length"] = true, ["upgrade"] = true, ["expect"] = true,
    ["x-forwarded-for"] = true, ["x-forwarded-method"] = true, ["x-forwarded-uri"] = true,
    ["x-forwarded-host"] = true,
}

-- What a refusal hands on to the client.
local HANDED_ON = { ["content-type"] = true, ["location"] = true, ["www-authenticate"] = true,
    ["cache-control"] = true, ["retry-after"] = true, ["set-cookie"] = true }

local function refuse(txn, status, headers, body)
    local reply = txn:reply({ status = status })
    for name, values in pairs(headers or {}) do
        if HANDED_ON[name] then
            for _, value in pairs(values) do reply:add_header(name, value) end
        end
    end
    reply:set_body(body or "")
    txn:done(reply)
end

core.register_action("portcullis", { "http-req" }, function(txn)
    local headers = {}
    for name, values in pairs(txn.http:req_get_headers()) do
        if not OWN[name] then
            headers[name] = {}
            for _, value in pairs(values) do table.insert(headers[name], value) end
        end
    end
    -- The path as the client sent it, with its query.
    headers["x-forwarded-uri"] = { txn.sf:pathq() }
    headers["x-forwarded-method"] = { txn.sf:method() }
    headers["x-forwarded-host"] = { txn.sf:req_hdr("Host") }
    headers["x-forwarded-for"] = { txn.sf:src() }

    local answer = core.httpclient():get({ url = DECISION, headers = headers, timeout = 5000 })
    if not answer or answer.status ~= 200 then
        local status = answer and answer.status or 503
        return refuse(txn, status < 400 and status ~= 303 and 503 or status, answer and answer.headers, answer and answer.body)
    end
    for variable, name in pairs({ auth_id = "x-auth-id", auth_user = "x-auth-user", auth_role = "x-auth-role",
        auth_cookie = "set-cookie" }) do
        local values = answer.headers[name]
        if values then txn:set_var("txn." .. variable, values[0] or values[1]) end
    end
end)
