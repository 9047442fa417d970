// Who the gateway says is asking, as a strategy of Payload 3 (`auth.strategies` of a collection).
import { createHash, timingSafeEqual } from 'node:crypto';

const digest = (text) => createHash('sha256').update(text).digest(); // equal lengths, as timingSafeEqual wants

/** `secret`: the gateway's, of at least 32 bytes. `field`: by which users are found. */
export function gatewayStrategy({ secret, field = 'username', collection = 'users' }) {
  // An empty secret would be equal to the one that a stranger does not send.
  if (typeof secret !== 'string' || secret.length < 32) throw new Error('GATEWAY_SECRET must hold at least 32 bytes');
  return {
    name: 'portcullis',
    authenticate: async ({ headers, payload }) => {
      const sent = headers.get('x-gateway-secret') ?? '';
      const named = headers.get('x-auth-user');
      if (named === null || !timingSafeEqual(digest(sent), digest(secret))) return { user: null };
      let name;
      try {
        name = decodeURIComponent(named); // what is not ASCII comes percent-encoded
      } catch {
        return { user: null };
      }
      const where = { [field]: { equals: name } };
      const { docs } = await payload.find({ collection, where, limit: 2, depth: 0, overrideAccess: true });
      // A database that ignores letter case or accents may find somebody else.
      const [user] = docs.filter((one) => one[field] === name);
      return { user: user ? { ...user, collection, _strategy: 'portcullis' } : null };
    },
  };
}
