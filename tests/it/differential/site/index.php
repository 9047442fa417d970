<?php
// A front controller that routes like the most liberal CMS there could be: it takes a request in every way that PHP
// code is known to take one, and in every combination of them, and serves what is protected if any of them leads there.

const MARKER = 'PROTECTED-MARKER';

function is_protected(string $path): bool
{
    return preg_match('#^/admin(/(?!open(/|$))|$)#D', $path) || $path === '/users.php'
        || preg_match('#^/item/[^/]+/.#s', $path);
}

function each_segment(string $path, callable $change): string
{
    return implode('/', array_map($change, explode('/', $path)));
}

function resolved(string $path): string
{
    $kept = [];
    foreach (explode('/', $path) as $segment) {
        if ($segment === '..') {
            array_pop($kept);
        } elseif ($segment !== '.' && $segment !== '') {
            $kept[] = $segment;
        }
    }
    return '/' . implode('/', $kept);
}

$changes = [
    'rawurldecode',
    'urldecode',
    'strtolower',
    'resolved',
    fn($p) => (string) parse_url($p, PHP_URL_PATH),
    fn($p) => preg_replace('#/+#', '/', $p),
    fn($p) => strtr($p, '\\', '/'),
    fn($p) => explode("\0", $p)[0],
    fn($p) => explode('?', $p)[0],
    fn($p) => explode('#', $p)[0],
    fn($p) => each_segment($p, fn($s) => explode(';', $s)[0]),
    fn($p) => each_segment($p, 'trim'),
    fn($p) => each_segment($p, fn($s) => rtrim($s, '. ')),
    fn($p) => preg_replace('#^(.*?\.php)/.*#i', '$1', $p),
    fn($p) => preg_replace('#^(.*?)/[^/]*\.php(/.*)#i', '$1$2', $p),
    fn($p) => rtrim($p, '/'),
];

function reaches(string $path, array $changes): bool
{
    $seen = [$path => true];
    $queue = [$path];
    while (($current = array_shift($queue)) !== null && count($seen) < 300) {
        if (is_protected($current)) {
            return true;
        }
        foreach ($changes as $change) {
            $next = (string) $change($current);
            if (!isset($seen[$next])) {
                $seen[$next] = true;
                $queue[] = $next;
            }
        }
    }
    return false;
}

$server = $_SERVER;
$path = explode('?', $server['REQUEST_URI'])[0];

if (str_starts_with($path, '/open/whoami')) {
    header('Content-Type: text/plain');
    foreach ($server as $name => $value) {
        if (is_string($value) && str_starts_with($name, 'HTTP_')) {
            echo "$name: $value\n";
        }
    }
    foreach (function_exists('getallheaders') ? getallheaders() : [] as $name => $value) {
        echo "$name: $value\n";
    }
    exit;
}

$paths = [$path, $server['REQUEST_URI'], $server['PATH_INFO'] ?? '', $server['ORIG_PATH_INFO'] ?? ''];
foreach (['ORIGINAL_URL', 'ORIGINAL_URI', 'REWRITE_URL', 'REWRITE_URI', 'OVERRIDE_URL', 'FORWARDED_URI', 'FORWARDED_PATH'] as $name) {
    $paths[] = $server["HTTP_X_$name"] ?? '';
}
$paths[] = ($server['HTTP_X_FORWARDED_PREFIX'] ?? '') . $path;

$methods = [$server['REQUEST_METHOD'], $_GET['_method'] ?? ''];
foreach (['HTTP_METHOD_OVERRIDE', 'HTTP_METHOD', 'METHOD_OVERRIDE', 'ORIGINAL_METHOD', 'FORWARDED_METHOD'] as $name) {
    $methods[] = $server["HTTP_X_$name"] ?? '';
}
$method_named = fn($m) => is_string($m) && strtoupper(trim($m)) === 'DELETE';

$routed = $_GET['rest_route'] ?? '';
$routed = is_array($routed) ? (string) reset($routed) : $routed;

$found = array_filter($paths, fn($p) => $p !== '' && reaches($p, $changes));
$found = $found || ($path === '/page' && array_filter($methods, $method_named));
$found = $found || preg_match('#^/+private(/|$)#i', $routed);

header('Content-Type: text/plain');
echo $found ? MARKER : 'nothing here';
