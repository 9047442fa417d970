<?php
// For PHP's own server: what is a file is served as one, all else goes to the front controller.
$file = __DIR__ . rawurldecode((string) parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH));
if (is_file($file)) {
    return false;
}
require __DIR__ . '/index.php';
