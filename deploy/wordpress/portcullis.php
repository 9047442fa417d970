<?php
/**
 * Plugin Name: Portcullis
 * Description: Believes the gateway about who is asking, and nobody else.
 * Version: 1
 *
 * A must-use plugin: one file in wp-content/mu-plugins, which nobody can switch off in the dashboard. Before WordPress
 * loads it, wp-config.php has to define one of the two ways by which the gateway is known:
 *
 *   define('PORTCULLIS_SECRET', getenv('GATEWAY_SECRET'));          // identity.secret, at least 32 bytes
 *
 *   define('PORTCULLIS_JWKS', '/etc/wordpress/portcullis-jwks.json'); // identity.assertion; `portcullis keys jwks`
 *   define('PORTCULLIS_AUDIENCE', 'http://127.0.0.1:8000');           // its audience: the gateway's `upstream`
 *
 * and may define PORTCULLIS_ISSUER (portcullis), PORTCULLIS_LOGIN (/auth/login) and PORTCULLIS_LOGOUT (/auth/logout).
 * Without either, nobody is signed in: not by the gateway, and not past it.
 *
 * Not here: who may request which page. That is gateway.yaml; what a user may then do is WordPress's own business.
 */

defined('ABSPATH') || exit;

/** The login name that the gateway vouches for in this request; null for a stranger and for nobody. */
function portcullis_user_name(): ?string
{
    if (defined('PORTCULLIS_JWKS')) {
        require_once __DIR__ . '/portcullis/portcullis_assertion.php';
        $jwks = json_decode((string) file_get_contents(PORTCULLIS_JWKS), true) ?: [];
        $issuer = defined('PORTCULLIS_ISSUER') ? PORTCULLIS_ISSUER : 'portcullis';
        $token = (string) ($_SERVER['HTTP_X_AUTH_ASSERTION'] ?? '');
        $claims = portcullis_assertion($token, $jwks, $issuer, PORTCULLIS_AUDIENCE);
        return $claims['preferred_username'] ?? null;
    }
    $secret = defined('PORTCULLIS_SECRET') ? (string) PORTCULLIS_SECRET : '';
    $sent = (string) ($_SERVER['HTTP_X_GATEWAY_SECRET'] ?? '');
    // An empty secret would be equal to the one that a stranger does not send.
    if (strlen($secret) < 32 || !hash_equals($secret, $sent) || !isset($_SERVER['HTTP_X_AUTH_USER'])) {
        return null;
    }
    return rawurldecode($_SERVER['HTTP_X_AUTH_USER']); // what is not ASCII comes percent-encoded
}

/**
 * Behind WordPress's own cookies (10) and application passwords (20), and whatever they said: who is not signed in at
 * the gateway is not signed in here.
 */
add_filter('determine_current_user', function () {
    $name = portcullis_user_name();
    $user = $name === null ? false : get_user_by('login', $name);
    // The database ignores letter case and accents; the gateway does not.
    return $user && $user->user_login === $name ? $user->ID : 0;
}, 30);

/** WordPress's own looks at its cookies alone; who comes by header would be sent to sign in for ever. */
if (!function_exists('auth_redirect')) {
    function auth_redirect()
    {
        if (get_current_user_id() === 0) {
            nocache_headers();
            // Signing in once more would not help somebody whom only the gateway knows.
            if (portcullis_user_name() !== null) wp_die('This site does not know you.', '', ['response' => 403]);
            wp_redirect(wp_login_url(set_url_scheme('http://' . $_SERVER['HTTP_HOST'] . $_SERVER['REQUEST_URI'])));
            exit;
        }
    }
}

/** The gateway's login page takes a path of this site as `next`. */
add_filter('login_url', function ($url, $redirect) {
    $login = defined('PORTCULLIS_LOGIN') ? PORTCULLIS_LOGIN : '/auth/login';
    $path = (string) wp_parse_url((string) $redirect, PHP_URL_PATH);
    $query = (string) wp_parse_url((string) $redirect, PHP_URL_QUERY);
    $next = $path === '' ? '/wp-admin/' : $path . ($query === '' ? '' : "?$query");
    return home_url($login) . '?next=' . rawurlencode($next);
}, 100, 2);

/**
 * wp-login.php signs nobody in. It sends those who come by an old bookmark on, shows the form that ends the gateway's
 * session (which wants a POST), and takes the password of a protected post, where gateway.yaml lets that through.
 */
add_action('login_init', function () {
    $action = $_REQUEST['action'] ?? '';
    if ($action === 'postpass') return;
    if ($action === 'logout') {
        check_admin_referer('log-out');
        $logout = esc_url(defined('PORTCULLIS_LOGOUT') ? PORTCULLIS_LOGOUT : '/auth/logout');
        wp_clear_auth_cookie();
        nocache_headers();
        echo "<!doctype html><title>Log out</title><form method=post action=\"$logout\"><button>Log out</button></form>",
            '<script>document.forms[0].submit()</script>';
        exit;
    }
    wp_safe_redirect(get_current_user_id() === 0 ? wp_login_url() : admin_url());
    exit;
});
add_filter('logout_url', fn() => wp_nonce_url(site_url('wp-login.php?action=logout'), 'log-out'));

/** Ways past the gateway: passwords of its own, for programs and for people. */
add_filter('wp_is_application_passwords_available', '__return_false');
add_filter('xmlrpc_enabled', '__return_false');
add_filter('authenticate', fn() => new WP_Error('portcullis', 'People sign in at the gateway.'), 1000);
add_filter('show_password_fields', '__return_false');
add_filter('allow_password_reset', '__return_false');

/**
 * WordPress takes `rest_route` from the body of a POST as well, before the query and the path. The gateway reads no
 * bodies, so what it judged by path and query must be what is served.
 */
add_action('plugins_loaded', function () {
    if (isset($_POST['rest_route'])) {
        wp_die('rest_route belongs in the query.', 'Bad request', ['response' => 400]);
    }
}, 0);
