<?php
// Installs the site that the test suite uses: pretty URLs, one user of each role, named by it, and their passwords.
$_SERVER += ['HTTP_HOST' => '127.0.0.1', 'REQUEST_URI' => '/', 'SERVER_PROTOCOL' => 'HTTP/1.1', 'REQUEST_METHOD' => 'GET'];
define('WP_INSTALLING', true);
require $argv[1] . '/wp-config.php';
require ABSPATH . 'wp-admin/includes/upgrade.php';
require ABSPATH . 'wp-admin/includes/admin.php';

// A site of the tests writes no mail.
add_filter('pre_wp_mail', '__return_true');
wp_install('Legacy', 'administrator', 'administrator@example.com', true, '', 'password of administrator');
foreach (['editor', 'author', 'contributor', 'subscriber'] as $role) {
    $user = wp_insert_user([
        'user_login' => $role,
        'user_pass' => "password of $role",
        'user_email' => "$role@example.com",
        'display_name' => ucfirst($role),
        'role' => $role,
    ]);
    if (is_wp_error($user)) exit($user->get_error_message());
}
$strange = wp_insert_user(['user_login' => 'nobody', 'user_pass' => 'password of nobody', 'user_email' => 'n@example.com']);
(new WP_User($strange))->set_role('');
update_option('permalink_structure', '/%postname%/');
update_option('blog_public', '0');
flush_rewrite_rules(false);
