import assert from 'node:assert/strict';
import { test } from 'node:test';
import { gatewayStrategy } from './strategy.js';

const secret = '0123456789abcdef0123456789abcdef';
const users = [{ id: 1, username: 'sam' }, { id: 2, username: 'Ödi +%' }];
// As a database that ignores letter case would find them.
const payload = {
  find: async ({ where }) => ({
    docs: users.filter((user) => user.username.toLowerCase() === where.username.equals.toLowerCase()),
  }),
};
const ask = async (headers) => (await gatewayStrategy({ secret }).authenticate({ headers: new Headers(headers), payload })).user;

test('only the gateway can say who is asking', async () => {
  for (const [headers, id] of [
    [{ 'x-gateway-secret': secret, 'x-auth-user': 'sam' }, 1],
    [{ 'x-gateway-secret': secret, 'x-auth-user': '%C3%96di +%25' }, 2],
    [{ 'x-gateway-secret': secret, 'x-auth-user': 'Sam' }, null],
    [{ 'x-gateway-secret': secret, 'x-auth-user': 'nobody' }, null],
    [{ 'x-gateway-secret': secret, 'x-auth-user': '%zz' }, null],
    [{ 'x-gateway-secret': secret }, null],
    [{ 'x-gateway-secret': `${secret}0`, 'x-auth-user': 'sam' }, null],
    [{ 'x-gateway-secret': '', 'x-auth-user': 'sam' }, null],
    [{ 'x-auth-user': 'sam' }, null],
  ]) {
    assert.equal((await ask(headers))?.id ?? null, id, JSON.stringify(headers));
  }
});

test('without a secret it does not start', () => {
  for (const short of [undefined, '', 'short']) assert.throws(() => gatewayStrategy({ secret: short }));
});
