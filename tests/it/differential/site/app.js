// An Express site that takes a path in every way that Node code is known to take one, and in every combination.
// node app.js EXPRESS PORT FOLDER
const [, , modules, port, folder] = process.argv;
const express = require(modules);
const url = require('url');
const path = require('path');

const MARKER = 'PROTECTED-MARKER';
const PROTECTED = /^\/admin(\/(?!open(\/|$))|$)|^\/users\.php$|^\/item\/[^/]+\/./s;

const eachSegment = (change) => (text) => text.split('/').map(change).join('/');
const tried = (change) => (text) => {
  try {
    return change(text);
  } catch {
    return text;
  }
};
const CHANGES = [
  tried(decodeURIComponent),
  tried(decodeURI),
  unescape,
  (text) => text.toLowerCase(),
  (text) => text.toUpperCase().toLowerCase(),
  (text) => text.normalize('NFKC'),
  // As a database compares that is told to ignore accents.
  (text) => text.normalize('NFKD').replace(/[\p{Mn}\p{Cf}]/gu, ''),
  (text) => path.posix.normalize(text),
  tried((text) => new URL(text, 'http://site').pathname),
  tried((text) => url.parse(text).pathname ?? text),
  tried((text) => url.parse(text, false, true).pathname ?? text),
  (text) => text.replace(/\/+/g, '/'),
  (text) => text.replace(/\\/g, '/'),
  (text) => text.replace(/\+/g, ' '),
  (text) => text.split('\0')[0],
  (text) => text.split('?')[0],
  (text) => text.split('#')[0],
  eachSegment((segment) => segment.split(';')[0]),
  eachSegment((segment) => segment.trim()),
  eachSegment((segment) => segment.replace(/[. ]+$/, '')),
  (text) => text.replace(/^(.*?\.php)\/.*/is, '$1'),
  (text) => text.replace(/\/+$/, ''),
];

function reaches(start) {
  const seen = new Set([start]);
  for (const current of seen) {
    if (seen.size > 150) break;
    if (PROTECTED.test(current)) return true;
    for (const change of CHANGES) seen.add(change(current));
  }
  return false;
}

const app = express();
app.set('query parser', 'extended');
app.all('/open/whoami', (request, response) => {
  request.resume().on('end', () => {
    const lines = Object.entries({ ...request.headers, ...request.trailers }).map((pair) => pair.join(': '));
    const raw = [...request.rawHeaders, ...request.rawTrailers];
    for (let i = 0; i < raw.length; i += 2) lines.push(`${raw[i]}: ${raw[i + 1]}`);
    response.type('text/plain').send(lines.join('\n'));
  });
});
app.all('/admin/open/*rest', (request, response) => response.type('text/plain').send('nothing here'));
app.all(['/admin', '/admin/*rest', '/users.php', '/item/:id/*rest'], (request, response) =>
  response.type('text/plain').send(MARKER),
);
app.use(express.static(folder, { index: false, redirect: false }));
app.use((request, response) => {
  const given = request.headers;
  const named = ['original-url', 'original-uri', 'rewrite-url', 'rewrite-uri', 'override-url', 'forwarded-uri'];
  const paths = [request.url, request.path, ...named.map((name) => given[`x-${name}`] ?? '')];
  paths.push((given['x-forwarded-prefix'] ?? '') + request.path);
  const methods = [request.method, given['x-http-method-override'], given['x-http-method'], given['x-method-override']];
  methods.push(...[request.query._method].flat());
  let found = paths.some((each) => each && reaches(each.split('?')[0]));
  found ||= request.path === '/page' && methods.some((each) => /^\s*delete\s*$/i.test(String(each)));
  found ||= [request.query.rest_route].flat().some((each) => /^\/+private(\/|$)/i.test(String(each)));
  response.type('text/plain').send(found ? MARKER : 'nothing here');
});
app.use((error, request, response, next) => response.status(error.status ?? 500).end());
const server = app.listen(Number(port), '127.0.0.1');
server.keepAliveTimeout = 60_000;
