# Varnish asks Portcullis about every request and forwards to the CMS what is allowed.
# In gateway.yaml: forward_auth: { listen: 127.0.0.1:9091, headers: traefik }, trusted_proxies: [127.0.0.1], no upstream.
vcl 4.1;

import std;

backend cms      { .host = "127.0.0.1"; .port = "3000"; }
backend gateway  { .host = "127.0.0.1"; .port = "8080"; }   # gateway.yaml: listen
backend decision { .host = "127.0.0.1"; .port = "9091"; }   # gateway.yaml: forward_auth.listen

sub vcl_recv {
    if (req.restarts == 0) {
        # The client's own word for what only this file and the gateway say. Another spelling of these names is
        # refused by the gateway.
        unset req.http.X-Auth-Id;
        unset req.http.X-Auth-User;
        unset req.http.X-Auth-Role;
        unset req.http.X-Portcullis-State;
        unset req.http.X-Portcullis-Method;
        unset req.http.X-Portcullis-Cookie;
        unset req.http.X-Forwarded-Method;
        unset req.http.X-Forwarded-Uri;
        unset req.http.Forwarded;
        # Varnish has added its peer at the end of the client's own list: only that is known.
        set req.http.X-Forwarded-For = client.ip;
        set req.http.X-Forwarded-Host = req.http.Host;
        unset req.http.X-Forwarded-Proto;

        # The gateway's own paths go to it unasked.
        if (req.url ~ "^/(auth/(login|logout|rotate)|\.well-known/jwks\.json)(\?|$)") {
            set req.backend_hint = gateway;
            return (pass);
        }
        # The question. Kept whole: its body belongs to the CMS.
        if (req.method != "GET" && req.method != "HEAD" && !std.cache_req_body(10MB)) {
            return (synth(413));
        }
        set req.http.X-Portcullis-State = "asking";
        set req.http.X-Portcullis-Method = req.method;
        set req.http.X-Forwarded-Method = req.method;
        set req.http.X-Forwarded-Uri = req.url;
        set req.backend_hint = decision;
        return (pass);
    }
    # Allowed. Varnish makes a GET of what it has passed, unless it is told.
    set req.method = req.http.X-Portcullis-Method;
    set req.backend_hint = cms;
    unset req.http.X-Portcullis-State;
    unset req.http.X-Portcullis-Method;
    unset req.http.X-Forwarded-Method;
    unset req.http.X-Forwarded-Uri;
    # The token stays here: the CMS reads who it is from X-Auth-*.
    if (req.http.Authorization ~ "(?i)^bearer\b") { unset req.http.Authorization; }
    set req.http.Cookie = regsuball(req.http.Cookie, "(__Host-)?portcullis_token=[^;]*;?\s*", "");
    if (req.http.Upgrade ~ "(?i)^websocket$") { return (pipe); }
    # What somebody may see, nobody else may be shown: no cache for whoever is somebody, or could be.
    return (pass);
}

sub vcl_backend_fetch {
    if (bereq.http.X-Portcullis-State == "asking") {
        unset bereq.body;
        set bereq.method = "GET";
        unset bereq.http.X-Portcullis-State;
        unset bereq.http.X-Portcullis-Method;
    }
    unset bereq.http.X-Portcullis-Cookie;
}

sub vcl_pipe {
    set bereq.http.Upgrade = req.http.Upgrade;
    set bereq.http.Connection = "Upgrade";
}

sub vcl_deliver {
    if (req.http.X-Portcullis-State == "asking") {
        # Anything but a 200 is the gateway's answer to the client.
        if (resp.status != 200) { return (deliver); }
        if (resp.http.X-Auth-Id)   { set req.http.X-Auth-Id   = resp.http.X-Auth-Id; }
        if (resp.http.X-Auth-User) { set req.http.X-Auth-User = resp.http.X-Auth-User; }
        if (resp.http.X-Auth-Role) { set req.http.X-Auth-Role = resp.http.X-Auth-Role; }
        if (resp.http.Set-Cookie)  { set req.http.X-Portcullis-Cookie = resp.http.Set-Cookie; }
        return (restart);
    }
    # A fresh cookie now and then, for a browser in use.
    if (req.http.X-Portcullis-Cookie && !resp.http.Set-Cookie) {
        set resp.http.Set-Cookie = req.http.X-Portcullis-Cookie;
    }
}
