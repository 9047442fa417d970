import { createPublicKey, verify } from 'node:crypto';

/**
 * Who the gateway says is asking: the claims of an assertion, or null when it is not the gateway's, not for this
 * audience, or over. `jwks` is the parsed /.well-known/jwks.json; `now` is in Unix seconds.
 */
export function assertion(token, jwks, issuer, audience, now = Date.now() / 1000) {
  try {
    const parts = token.split('.');
    const decode = (text) => JSON.parse(Buffer.from(text, 'base64url').toString());
    const header = decode(parts[0]);
    if (parts.length !== 3 || header.typ !== 'portcullis-assertion+jwt' || header.alg !== 'EdDSA') return null;
    const jwk = jwks.keys.find((key) => key.kid === header.kid && key.crv === 'Ed25519');
    const key = createPublicKey({ key: jwk, format: 'jwk' });
    const signed = Buffer.from(`${parts[0]}.${parts[1]}`);
    if (!verify(null, signed, key, Buffer.from(parts[2], 'base64url'))) return null;
    const claims = decode(parts[1]);
    return claims.iss === issuer && claims.aud === audience && claims.exp > now ? claims : null;
  } catch {
    return null; // what cannot be read is nobody's word
  }
}
