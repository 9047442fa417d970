<?php
/**
 * Who the gateway says is asking: the claims of an assertion, or null when it is not the gateway's, not for this
 * audience, or over. Needs sodium, which PHP has had since 7.2. $jwks: the decoded /.well-known/jwks.json.
 */
function portcullis_assertion(string $token, array $jwks, string $issuer, string $audience, ?int $now = null): ?array
{
    $decode = fn(string $text) => (string) base64_decode(strtr($text, '-_', '+/'), true);
    $parts = explode('.', $token);
    if (count($parts) !== 3) return null;
    $header = json_decode($decode($parts[0]), true);
    if (($header['typ'] ?? '') !== 'portcullis-assertion+jwt' || ($header['alg'] ?? '') !== 'EdDSA') return null;
    $named = fn($key) => ($key['kid'] ?? '') === ($header['kid'] ?? null) && ($key['crv'] ?? '') === 'Ed25519';
    [$signature, $keys] = [$decode($parts[2]), array_values(array_filter($jwks['keys'] ?? [], $named))];
    $key = $decode($keys[0]['x'] ?? '');
    if (strlen($key) !== 32 || strlen($signature) !== 64) return null;
    if (!sodium_crypto_sign_verify_detached($signature, "$parts[0].$parts[1]", $key)) return null;
    $claims = json_decode($decode($parts[1]), true);
    $meant = ($claims['iss'] ?? '') === $issuer && ($claims['aud'] ?? '') === $audience;
    return $meant && ($claims['exp'] ?? 0) > ($now ?? time()) ? $claims : null;
}
