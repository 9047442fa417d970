<?php
/**
 * WordPress behind the gateway, configured by its environment: WORDPRESS_DB_HOST, PUBLIC_URL (the gateway's address, as
 * browsers see it), and GATEWAY_SECRET or PORTCULLIS_JWKS with PORTCULLIS_AUDIENCE.
 */
define('DB_NAME', getenv('WORDPRESS_DB_NAME') ?: 'wp');
define('DB_USER', getenv('WORDPRESS_DB_USER') ?: 'wp');
define('DB_PASSWORD', getenv('WORDPRESS_DB_PASSWORD') ?: 'wp');
define('DB_HOST', getenv('WORDPRESS_DB_HOST'));
define('DB_CHARSET', 'utf8mb4');
define('DB_COLLATE', '');
$table_prefix = getenv('WORDPRESS_TABLE_PREFIX') ?: 'wp_';

// For a site of your own take the eight lines of https://api.wordpress.org/secret-key/1.1/salt/ instead.
foreach (['AUTH', 'SECURE_AUTH', 'LOGGED_IN', 'NONCE'] as $name) {
    define("{$name}_KEY", hash('sha256', "{$name}_KEY" . getenv('GATEWAY_SECRET')));
    define("{$name}_SALT", hash('sha256', "{$name}_SALT" . getenv('GATEWAY_SECRET')));
}

// ---- What the gateway asks for
define('WP_HOME', getenv('PUBLIC_URL'));
define('WP_SITEURL', getenv('PUBLIC_URL'));
define('DISABLE_WP_CRON', true); // a cron job runs wp-cron.php; the gateway lets nobody at it
define('DISALLOW_FILE_EDIT', true);
if (getenv('PORTCULLIS_JWKS')) {
    define('PORTCULLIS_JWKS', getenv('PORTCULLIS_JWKS'));
    define('PORTCULLIS_AUDIENCE', getenv('PORTCULLIS_AUDIENCE'));
} else {
    define('PORTCULLIS_SECRET', getenv('GATEWAY_SECRET'));
}
// The gateway overwrites this header with what it knows.
if (($_SERVER['HTTP_X_FORWARDED_PROTO'] ?? '') === 'https') {
    $_SERVER['HTTPS'] = 'on';
}
// ----

define('WP_HTTP_BLOCK_EXTERNAL', true);
define('AUTOMATIC_UPDATER_DISABLED', true);
if (!defined('ABSPATH')) define('ABSPATH', __DIR__ . '/');
require_once ABSPATH . 'wp-settings.php';
